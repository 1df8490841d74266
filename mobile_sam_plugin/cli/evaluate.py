"""``mobile-sam evaluate``: how good a checkpoint is on a data set, and others beside it."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import Checkpoint, Device, MaxPixels, ModelType, load_sam
from .robustness import AttackName, GoalName, folder_name, run_attacks, run_corruptions

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ..evaluation.predictors import Predictor


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Images with masks: a COCO instances JSON, a folder of SA-1B, of labelme, or of "
            "images with PNG masks, or scenes:COUNT or scenes:COUNT:SEED, synthetic images.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Folder of the images, if not beside the JSON or the masks.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    model_type: Annotated[ModelType, typer.Option(help="Model type of --checkpoint.")] = "vit_t",
    teacher: Annotated[
        str | None, typer.Option(metavar="C", help="Also compare with this checkpoint's masks.")
    ] = None,
    teacher_type: Annotated[ModelType, typer.Option(help="Model type of --teacher.")] = "vit_h",
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Also evaluate the predictor that this function returns, by the same prompts: any "
            "object with set_image and predict. Can be given several times.",
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            exists=True,
            dir_okay=False,
            help="Instead of all metrics, COCO's mask AP with a detector's boxes as prompts: a "
            "list of COCO's results. DATA must be COCO's instances JSON.",
        ),
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SEVERITY]|all",
            help="Instead, how masks change in corrupted images: a corruption of ImageNet-C, or "
            "occlusion; at a severity of 1 to 5, or at all. Can be given several times.",
        ),
    ] = None,
    attack: Annotated[
        AttackName | None,
        typer.Option(
            help="Instead, how far an attacker can move masks, by one step or by several along the "
            "gradient of a SAM. Every SAM is attacked, and its images are shown to all."
        ),
    ] = None,
    epsilon: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=255,
            help="How far --attack may change a value of the image, of 255.",
            show_default="8",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of --attack pgd.", show_default="10")
    ] = None,
    goal: Annotated[
        GoalName | None,
        typer.Option(
            help="What --attack wants: no mask, one of the whole image, or that of another object.",
            show_default="remove",
        ),
    ] = None,
    save_images: Annotated[
        bool, typer.Option("--save-images", help="Write the attacked images to DIR as well.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="click, click_best, box, pair_100 to pair_500, corrective_1 to corrective_5, "
            "recall_10, recall_100, recall_1000. Recall takes by far the most time. With "
            "--corruption or --attack click, box and pairs.",
            show_default="all; with --predictor those of one prompt, with --corruption click,box, "
            "with --attack click",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate only the first N images.", show_default="all"),
    ] = None,
    masks_per_image: Annotated[
        int, typer.Option(min=1, help="Maximum number of masks per image to prompt for.")
    ] = 5,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random seed for choosing masks and prompts and for the confidence intervals.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Output folder. An interrupted run there is resumed: images with "
            "unchanged pixels and masks are not evaluated again.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken image instead of skipping it.")
    ] = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Evaluate a checkpoint's masks, with 95 % confidence intervals, and the cost of its parts.

    Prints a table, and writes to DIR: the table as evaluation.md, evaluation.json, scores.png,
    worst_and_best.png, images.jsonl with the scores of each image, and run.json. With --predictor
    also comparison.md, and a folder of the same files for each predictor; with --boxes boxes.md,
    boxes.json, and a folder of masks for each model. With --corruption robustness.md and
    robustness.png, with --attack attack.md, and for each model a folder of evaluation.json,
    images.jsonl and run.json; both have --teacher as a model beside the others.
    """
    from dataclasses import replace

    from torch.utils.data import Subset
    from tqdm import tqdm

    from ..evaluation.costs import count_costs
    from ..evaluation.evaluation import evaluate as evaluate_model
    from ..evaluation.examiner import METRICS, OF_ONE_PROMPT
    from ..evaluation.predictors import load_predictor, measure_effort
    from ..evaluation.results import format_comparison
    from ..evaluation.worst_and_best import draw_worst_and_best, find_drawable
    from ..files import write_file
    from ..scenes.scenes import open_images_or_scenes

    _check_instead(boxes, corruption, attack)
    if attack is None and (epsilon or steps or goal or save_images):
        raise typer.BadParameter(
            "--epsilon, --steps, --goal and --save-images need it", param_hint="--attack"
        )
    if attack == "fgsm" and steps is not None:
        raise typer.BadParameter("fgsm takes one step; pgd takes several", param_hint="--steps")
    if save_images and out is None:
        raise typer.BadParameter("the images need --out", param_hint="--save-images")
    others = {name: load_predictor(name) for name in predictor or []}
    if boxes is not None:
        if metrics is not None or teacher is not None:
            raise typer.BadParameter(
                "goes with neither --metrics nor --teacher", param_hint="--boxes"
            )
        model = load_sam(model_type, checkpoint, "--checkpoint", device)
        _evaluate_boxes({model_type: model, **others}, data, images, boxes, limit, out)
        return
    annotated: Any = open_images_or_scenes(data, images)
    if limit is not None and limit < len(annotated):
        annotated = Subset(annotated, range(limit))
    model = load_sam(model_type, checkpoint, "--checkpoint", device)
    reference = None if teacher is None else load_sam(teacher_type, teacher, "--teacher", device)
    if corruption or attack is not None:
        models = {model_type: model, **({} if reference is None else {"teacher": reference})}
        chosen = [name.strip() for name in metrics.split(",")] if metrics else None
        options: dict[str, Any] = {} if chosen is None else {"metrics": chosen}
        options |= {"masks_per_image": masks_per_image, "seed": seed, "strict": strict}
        if corruption:
            run_corruptions({**models, **others}, annotated, corruption, options, out)
        else:
            options |= {"goal": goal or "remove", "epsilon": epsilon or 8}
            options |= {"steps": 1 if attack == "fgsm" else steps or 10}
            options |= {"save_images": save_images}
            run_attacks({**models, **others}, annotated, options, out)
        return
    run = partial(
        evaluate_model,
        data=annotated,
        metrics=[name.strip() for name in metrics.split(",")]
        if metrics
        else (OF_ONE_PROMPT if others else METRICS),
        masks_per_image=masks_per_image,
        seed=seed,
        strict=strict,
    )
    with tqdm(total=len(annotated), unit="image", disable=None) as bar:
        evaluation = run(
            model,
            teacher=reference,
            folder=out,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    evaluation = replace(evaluation, costs=count_costs(model))
    typer.echo(evaluation.format_table())
    beside: dict[str, Any] = {model_type: evaluation}
    for name, other in others.items():
        folder = None if out is None else out / folder_name(name)
        with tqdm(total=len(annotated), unit="image", desc=name, disable=None) as bar:
            found = run(other, folder=folder, progress=lambda done, _: bar.update(done - bar.n))
        if folder is not None:
            found.save(folder)
        beside[name] = found
    if others:
        image = annotated[evaluation.images[0].index].image
        efforts = {
            name: measure_effort(each, image)
            for name, each in {model_type: model, **others}.items()
        }
        comparison = format_comparison(beside, efforts)
        typer.echo(comparison)
        if out is not None:
            write_file(out / "comparison.md", comparison.encode() + b"\n")
    if out is not None:
        evaluation.save(out)
        figure = out / "worst_and_best.png"
        if find_drawable(evaluation) is not None:
            draw_worst_and_best(evaluation, model, annotated, figure)
        else:
            figure.unlink(missing_ok=True)
            typer.echo(
                f"mobile-sam: no {figure.name}: no mask has a score of click, click_best, box or "
                "a pair",
                err=True,
            )
        typer.echo(out / "evaluation.json")


def _check_instead(
    boxes: Path | None, corruptions: list[str] | None, attack: AttackName | None
) -> None:
    """Raises BadParameter if more than one kind of evaluation is asked for."""
    given = {"--boxes": boxes, "--corruption": corruptions, "--attack": attack}
    if len(names := [name for name, value in given.items() if value]) > 1:
        raise typer.BadParameter(f"give only one of {' and '.join(names)}")


def _evaluate_boxes(
    models: "dict[str, Sam | Predictor]",
    annotations: str,
    images: Path | None,
    detections: Path,
    limit: int | None,
    out: Path | None,
) -> None:
    """Prints and writes COCO's AP of the models' masks, and of the boxes themselves."""
    from tqdm import tqdm

    from ..evaluation.detections import BoxPrompts, evaluate_boxes, format_boxes
    from ..files import write_file

    prompts = BoxPrompts(annotations, detections, images, limit)
    found = [box for key in prompts.image_ids for box in prompts.boxes[key]]
    figures = {"the boxes themselves": prompts.average_precision(found, "bbox")}
    for name, model in models.items():
        folder = None if out is None else out / f"boxes_{folder_name(name)}"
        with tqdm(total=len(prompts.image_ids), unit="image", desc=name, disable=None) as bar:
            kinds = evaluate_boxes(
                model,
                prompts,
                folder=folder,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        figures |= {f"{name}, {kind.replace('_', ' ')}": each for kind, each in kinds.items()}
    table = f"{format_boxes(figures)}\n\n{len(prompts.image_ids):,} images, {len(found):,} boxes."
    typer.echo(table)
    if out is not None:
        write_file(out / "boxes.md", table.encode() + b"\n")
        content = {name: asdict(precision) for name, precision in figures.items()}
        write_file(out / "boxes.json", json.dumps(content, indent=1).encode())
        typer.echo(out / "boxes.json")
