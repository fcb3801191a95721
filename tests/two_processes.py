"""What tests/test_processes.py starts, once by itself and once under torchrun: three short runs into a folder.

[torchrun --nproc_per_node 2] tests/two_processes.py OUTPUT DATA CLASSIFIER MAE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from training_sets import finetuning, pretraining

from hiera_video.tasks.train import pretrain as pretrain_job
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.pretrain import pretrain
from hiera_video.training.recipe import Finetuning, Pretraining
from hiera_video.training.recipe_file import load_recipe

#: All that differs between processes by design is off.
OFF = {
    "model.drop_path_rate": "0",
    "model.head_dropout": "0",
    "loss.mixup": "0",
    "loss.cutmix": "0",
    "data.num_workers": "0",
    "run.batch_size": "4",
    "run.evaluate_every": "8st",
}


def main(output: Path, data: Path, classifier: Path, mae: Path) -> None:
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    changes = finetuning(data / "train", classifier, data__val=str(data / "val"), run__duration="16st") | OFF
    list(finetune(load_recipe(Finetuning, changes=changes | {"run.output": str(output / "plain")})))

    seen: list[tuple[Any, ...]] = []
    draw = pretrain_job.Masking.draw

    def noted(self: pretrain_job.Masking, rows: Any) -> dict[str, Any]:
        rows = list(rows)
        masks = draw(self, rows)
        seen.extend((*row, np.flatnonzero(keep).tolist()) for row, keep in zip(rows, masks["keep"], strict=True))
        return masks

    pretrain_job.Masking.draw = noted  # type: ignore[method-assign]
    pretrain_job.show_some = lambda *parts, **more: None  # it draws masks too, in one of the processes
    changes = pretraining(data / "train", mae, run__duration="8st", data__num_workers="1")
    list(pretrain(load_recipe(Pretraining, changes=changes | {"run.output": str(output / "mae")})))
    (output / f"seen_{world}_{rank}.json").write_text(json.dumps(seen))

    if world > 1:
        changes = finetuning(data / "train", classifier, run__duration="2st") | OFF
        changes |= {"optim.ema": "null", "run.shard": "true", "run.output": str(output / "sharded")}
        list(finetune(load_recipe(Finetuning, changes=changes)))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
