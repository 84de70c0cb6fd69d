"""Score a finished run and write its record: `ffvit score runs/digits/ff-seed0`.

The last weights are scored on the test split, every image once, and record.json is written into the run's folder. With
--record it is also put among the records that come with the project, as results/digits/ff-seed0.json; one that is there is
never written over, and one of other images than those there is refused.
`ffvit score --trial runs/trials/a` writes down a run made to choose a recipe, as results/digits/trials/a.json: its
validation scores and what it cost, and never a look at the test split.
"""

import os
from pathlib import Path

from ffvit.commands.arguments import Parser
from ffvit.evidence.records import images_unlike_recorded, open_run, publish, write_record, write_trial
from ffvit.settings.headline import HEADLINES


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit score", __doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--trial", action="store_true", help="write down its validation scores only")
    parser.add_argument("--record", action="store_true", help="put the record into results/ too")
    options = parser.parse_args(arguments)
    run_dir = Path(os.path.relpath(options.run_dir))
    config, _ = open_run(run_dir)

    if options.trial:
        print(f"trial: {os.path.relpath(write_trial(run_dir))}")
        return 0

    # With torch, which takes seconds: --help, a trial and a run that is not there are answered without.
    from ffvit.evidence.scoring import score, score_train
    from ffvit.tasks.task import task_of

    splits = task_of(config).load_splits()
    weights = run_dir / "last.safetensors"
    evaluation = score(config, weights, splits)
    path = write_record(run_dir, evaluation, splits.fingerprint, score_train(config, weights, splits))
    if options.record:
        path = publish(run_dir)
    print(
        f"{HEADLINES[config.task].label} {evaluation.metrics[HEADLINES[config.task].name]:.2f} of {evaluation.images:,} test "
        f"images; record: {os.path.relpath(path)}"
        + (f"; in no table: {why}" if (why := images_unlike_recorded(config, splits.fingerprint)) else "")
    )
    return 0
