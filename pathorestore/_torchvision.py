"""Make `import torchvision` work where its compiled operators cannot load.

A torchvision wheel built for CUDA beside a CPU-only torch raises at import ("operator torchvision::nms does not exist") and takes timm,
lpips, torchmetrics and lightning with it. Declaring the schemas that its Python code registers fakes for is enough: none of those packages
needs the operators themselves. Nothing happens where torchvision is healthy.
"""

import importlib
import sys
from types import ModuleType

_declared: list[object] = []  # a torch Library undoes its definitions when it is collected


def ensure_torchvision() -> ModuleType | None:
    """Import torchvision, declaring its missing operators first if that import fails; None if it is not installed.

    Call it before the first import of timm, lpips, torchmetrics or pytorch_lightning.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return None
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    import torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
