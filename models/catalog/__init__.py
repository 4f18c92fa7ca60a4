"""The catalog of model families: one YAML file per family beside this module, read by the closed models of `schema`.

>>> from models.catalog import load_catalog
>>> load_catalog().variant("qwen2.5-vl-7b").parameters.total
8292166656
"""

from models.catalog.load import Catalog, load_catalog
from models.catalog.schema import Family, Variant

__all__ = ["Catalog", "Family", "Variant", "load_catalog"]
