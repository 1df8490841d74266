"""``mobile-sam info``, ``convert`` and ``download``: files of weights."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from .inputs import CHECKPOINT_NAMES, Dtype

if TYPE_CHECKING:
    from .. import MobileSam

Target = Literal["upstream", "transformers"]

For = Annotated[
    Target | None,
    typer.Option(
        "--for",
        help="'upstream' adds the unused classification head, four tensors, without which the "
        "original mobile_sam and Ultralytics refuse a file. 'transformers' writes a folder that "
        "AutoModel and pipeline('mask-generation') load after `import "
        "mobile_sam_plugin.transformers`, in float32 unless told otherwise.",
    ),
]


def info(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help=f"Checkpoint. {CHECKPOINT_NAMES}",
            show_default="bundled; with --verify hf://nielsr/mobilesam",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Tell whether the weights are the authors', and segment a photograph as a check. "
            "Exit with 0 if they are and the masks are sound, else with 1.",
        ),
    ] = False,
) -> None:
    """Show versions, devices and the contents of a checkpoint.

    Nothing is downloaded unless --verify is given or CHECKPOINT names a file that is not here yet.
    """
    import platform
    from importlib.metadata import version

    from .. import DEFAULT_CHECKPOINT, __version__
    from ..checkpoint import download, locate_checkpoint

    path = locate_checkpoint(checkpoint or (DEFAULT_CHECKPOINT if verify else "bundled"))
    typer.echo(f"mobile-sam-plugin   {__version__}")
    typer.echo(f"python              {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "torchvision", "timm", "segment-anything", "huggingface-hub", "numpy"):
        typer.echo(f"{package:<20}{version(package)}")
    typer.echo(f"devices             {', '.join(_list_devices())}")
    if checkpoint is None:
        override = os.environ.get("MOBILE_SAM_CHECKPOINT")
        if override:
            default = f"{override} (MOBILE_SAM_CHECKPOINT)"
        else:
            try:
                cached = download(DEFAULT_CHECKPOINT.removeprefix("hf://"), local_files_only=True)
                default = f"{DEFAULT_CHECKPOINT}, at {cached}"
            except ConnectionError:
                default = f"{DEFAULT_CHECKPOINT}, not downloaded yet"
        typer.echo(f"default checkpoint  {default}")
    model = _describe_checkpoint(path)
    if verify:
        _verify(path, model)


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help=f"Checkpoint to read. {CHECKPOINT_NAMES}")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The file to write: .safetensors, .pt, .pth or .bin; a folder with --for "
            "transformers.",
        ),
    ],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type to convert to.", show_default="unchanged")
    ] = None,
    for_: For = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists.")
    ] = False,
) -> None:
    """Convert a checkpoint between formats and precisions.

    The checkpoint is verified first. Only going from float32 to float16 loses anything.
    """
    written = _write(source, target, dtype, for_, overwrite)
    typer.echo(f"{written}  {written.stat().st_size:,} bytes")


def download(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="hf://owner/repo[/file][@revision], or 'bundled'.",
            show_default="hf://nielsr/mobilesam",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit.", show_default="the default branch")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write it to this file as well, in the format of its suffix: .pt, .pth, .bin or "
            ".safetensors.",
        ),
    ] = None,
    for_: For = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --to if it exists.")
    ] = False,
) -> None:
    """Download a checkpoint and print its path.

    It goes into the cache of the Hugging Face Hub, and is not downloaded again if it is there. With
    --to it is verified and written to a file, for programs that look for one before they load it.
    """
    from .. import DEFAULT_CHECKPOINT
    from ..checkpoint import locate_checkpoint

    if to is None:
        for given, option in ((for_, "--for"), (overwrite, "--overwrite")):
            if given:
                raise typer.BadParameter("it goes with --to FILE", param_hint=option)
    name = checkpoint or DEFAULT_CHECKPOINT
    if revision is not None:
        if not name.startswith("hf://") or "@" in name:
            raise typer.BadParameter(
                f"{name!r} is no hf:// name without a revision", param_hint="--revision"
            )
        name = f"{name}@{revision}"
    if to is None:
        typer.echo(locate_checkpoint(name))
        return
    _write(name, to, None, for_, overwrite)
    typer.echo(to)


def _write(
    source: str, target: Path, dtype: Dtype | None, for_: Target | None, overwrite: bool
) -> Path:
    """Verifies a checkpoint and writes it to a file, in the format of its suffix, or to a folder.

    Returns:
        The file of weights.
    """
    if target.exists() and not overwrite:
        raise FileExistsError(f"{str(target)!r} exists: give --overwrite to replace it")
    if for_ == "transformers" and (target.suffix or target.is_file()):
        raise UserError(f"{str(target)!r}: name a folder, without a suffix, for --for transformers")
    if for_ != "transformers" and target.is_dir():
        raise IsADirectoryError(f"{str(target)!r} is a folder: name a file")

    import torch

    from .. import MobileSam
    from ..checkpoint import (
        HUB_FILE,
        locate_checkpoint,
        read_backbone,
        read_checkpoint,
        require_suffix,
        save_checkpoint,
        verify_checkpoint,
    )

    # What cannot be written is known before anything is downloaded.
    if for_ == "transformers":
        from ..transformers import save_for_transformers
    else:
        require_suffix(target)
    path = locate_checkpoint(source)
    tensors = read_checkpoint(path)
    backbone = read_backbone(path)
    sam = MobileSam.untrained(backbone)
    verify_checkpoint(tensors, sam.state_dict(), str(path))
    if for_ == "transformers":
        sam.load_state_dict(tensors)
        save_for_transformers(sam, target, getattr(torch, dtype) if dtype else None)
        return target / HUB_FILE
    save_checkpoint(
        tensors,
        target,
        dtype=getattr(torch, dtype) if dtype else None,
        for_upstream=for_ == "upstream",
        backbone=backbone,
    )
    return target


def _list_devices() -> list[str]:
    import torch

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _describe_checkpoint(path: Path) -> "MobileSam":
    from .. import MobileSam
    from ..checkpoint import read_backbone, read_checkpoint, verify_checkpoint
    from ..files import digest_contents

    tensors = read_checkpoint(path)
    model = MobileSam.untrained(read_backbone(path))
    verify_checkpoint(tensors, model.state_dict(), str(path))
    model.load_state_dict(tensors)
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    typer.echo(f"checkpoint          {path}")
    typer.echo(f"sha256              {digest_contents(path)}")
    typer.echo(f"tensors             {', '.join(f'{n} {dtype}' for dtype, n in dtypes.items())}")
    typer.echo(f"backbone            {model.backbone or 'TinyViT'}")
    for name, part in model.named_children():
        typer.echo(f"{name:<20}{sum(p.numel() for p in part.parameters()):,} parameters")
    return model


def _verify(path: Path, model: "MobileSam") -> None:
    from ..verification import check_masks, trace_weights

    provenance = trace_weights(path, model.state_dict())
    authors = provenance.proof in ("file", "tensors")
    typer.echo(f"weights             {provenance.sentence}")
    typer.echo(f"licence             {provenance.licence}")
    typer.echo(f"source              {provenance.source}")
    checks = check_masks(model, authors)
    for check in checks:
        verdict = check.fault or "sound"
        typer.echo(
            f"self-check          {check.prompt}: {check.area:.1%} of the image, predicted IoU "
            f"{check.predicted_iou:.2f}: {verdict}"
        )
    if not authors:
        typer.echo("mobile-sam: the weights are not proven to be the authors'", err=True)
    elif any(check.fault for check in checks):
        typer.echo("mobile-sam: the self-check failed", err=True)
    else:
        return
    raise typer.Exit(1)
