"""Let torchvision be imported where its compiled operators cannot be loaded.

CPU builds of torchvision exist only on PyTorch's own index.  Where that index cannot be reached, set-up installs a CPU
build of torch beside the ordinary torchvision, which is linked to CUDA.  Its extension does not load there, and then
`import torchvision` itself fails with `operator torchvision::nms does not exist`, because torchvision attaches
shape functions to operators that nobody defined.  Defining their schemas is enough; no vision-language path calls
them, and torchvision still refuses a call of `torchvision.ops.nms` with a message of its own.

Set-up copies this file into site-packages, beside a .pth file that imports it, only where the import fails without it:
so it is there in every process of that environment (Ray's workers and vLLM's engine processes too), and it does not
depend on where the project's folder is.  It costs a class and a list entry at the start of Python; torch is not
imported.  It acts only when torchvision is imported, torch is a CPU build and the extension did not load.
"""

import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# torchvision imports its extension first; the first of these comes right after, before anything uses the operators.
TRIGGERS = ("torchvision._autograd_registrations", "torchvision._meta_registrations")

_kept: list[object] = []  # a torch.library.Library takes its definitions with it when it is collected


def define_schemas() -> bool:
    """Define the missing operator schemas; return whether there was a need to."""
    import torch
    from torchvision import extension

    if torch.version.cuda is not None or extension._has_ops():
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)
    return True


class Finder:
    """A `sys.meta_path` entry that finds nothing: it only notices the import of torchvision, once."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Return None always, so that the ordinary finders load the module."""
        if name in TRIGGERS and cls in sys.meta_path:
            sys.meta_path.remove(cls)
            define_schemas()


def install() -> None:
    """Watch for the import of torchvision in this process."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


install()
