# What `make test-vllm` adds to torchvision's extension.py in .venv-vllm. A torchvision that was built for CUDA
# does not load its operators beside a CPU build of torch, and fails where it registers more about these two.
_declared = torch.library.Library("torchvision", "FRAGMENT")  # noqa: F821
_declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
