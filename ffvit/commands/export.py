"""Hand a trained model on: `ffvit export runs/digits/ff-seed0 --to ff-digits` writes a folder that timm and the hub read.

In it are model.safetensors, the weights that were scored; config.json; a model card with data, score, recipe and limits; and the
record. It loads with timm.create_model("local-dir:ff-digits", pretrained=True) after import ffvit.models.
--onnx writes a file for programs without PyTorch instead, a classification model's, once onnxruntime computes the same from it.
--push OWNER/NAME also sends the folder to the hub, where you are logged in (hf auth login).
"""

import os
from pathlib import Path

from ffvit.commands.arguments import Parser, path
from ffvit.evidence.records import open_run


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit export", __doc__)
    parser.add_argument("run_dir", type=path, metavar="RUN", help="the folder of a run that is trained and scored")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=path, help="a new folder; with --onnx: a new file")
    what.add_argument(
        "--keep", action="store_true", help="put small weights into results/, beside the run's record there"
    )
    parser.add_argument("--onnx", action="store_true", help="write an ONNX file instead of a folder")
    parser.add_argument("--dynamic-batch", action="store_true", help="with --onnx: of any number of images at a time")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, by its name on the hub: apache-2.0")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send the folder to the hub, too")
    parser.add_argument("--private", action="store_true", help="with --push: to be seen by you alone")
    options = parser.parse_args(arguments)
    for option, needed in (("private", "push"), ("push", "to"), ("onnx", "to"), ("dynamic-batch", "onnx")):
        if getattr(options, option.replace("-", "_")) and not getattr(options, needed):
            parser.error(f"--{option} needs --{needed}")
    if options.onnx and options.push:
        parser.error("--push sends a folder: leave --onnx out")
    run_dir = Path(os.path.relpath(options.run_dir))
    open_run(run_dir)  # --help, and a run that is not there, are answered without torch

    from ffvit.evidence.export import export, push
    from ffvit.evidence.kept_weights import keep

    if options.onnx:
        from ffvit.evidence.onnx_export import export_onnx

        found = export_onnx(run_dir, options.to, options.dynamic_batch)
        print(f"model: {options.to}; onnxruntime's logits differ from PyTorch's by {found:.0e} at most")
        return 0
    if options.keep:
        print(f"weights: {os.path.relpath(keep(run_dir))}")
        return 0
    print(f"model: {export(run_dir, options.to, options.license)}")
    if options.push:
        print(f"sent: {push(options.to, options.push, options.private)}")
    return 0
