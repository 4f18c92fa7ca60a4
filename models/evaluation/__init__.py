"""Ask a served model a golden set, record every answer, score it.

>>> from models.evaluation import EvaluationSettings, evaluate
>>> report = evaluate(EvaluationSettings(url="http://127.0.0.1:8000/v1", model="m", golden="easy-vqa", out=Path("run")))
>>> report["accuracy"]
{'value': 0.98, 'low': 0.977, 'high': 0.983, 'n': 9673}
"""

from models.evaluation.run import evaluate
from models.evaluation.settings import EvaluationSettings

__all__ = ["EvaluationSettings", "evaluate"]
