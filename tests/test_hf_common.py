"""transformers' common model tests, out of its source distribution, on its own Hiera and on ours: what passes there
passes here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

transformers = pytest.importorskip("transformers")

#: What transformers' tests ask a file of a model for; ``LIBRARY`` is transformers or ``hiera_video.hf``.
PROGRAM = """
import importlib, os, unittest
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor

library = importlib.import_module(os.environ["LIBRARY"])


class Sizes:
    batch_size, image_size, patch_size, num_hidden_layers, hidden_size, is_training = 7, 64, 4, 4, 64, True

    def __init__(self, parent=None):
        pass

    def get_config(self):
        decoder = {"decoder_hidden_size": 8, "decoder_depth": 1, "decoder_num_heads": 1}
        sizes = {"embed_dim": 8, "image_size": [64, 64], "depths": [1] * 4, "num_heads": [1] * 4, "mlp_ratio": 1.0}
        return library.HieraConfig(**sizes, **decoder, num_labels=10)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([7, 3, 64, 64])}

    def prepare_config_and_inputs(self):
        return self.get_config(), floats_tensor([7, 3, 64, 64]), None


class TestModel(ModelTesterMixin, unittest.TestCase):
    kinds = ("HieraModel", "HieraBackbone", "HieraForImageClassification", "HieraForPreTraining")
    all_model_classes = tuple(getattr(library, kind) for kind in kinds)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True  # our files bear no year

    def setUp(self):
        self.model_tester = Sizes()


class TestBackbone(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (library.HieraBackbone,)
    config_class = library.HieraConfig

    def setUp(self):
        self.model_tester = Sizes()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``tests`` of the transformers that is installed, with empty stand-ins for what its archive leaves out."""
    pytest.importorskip("parameterized", reason="transformers' tests need parameterized")
    place = tmp_path_factory.mktemp("transformers")
    wanted = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    done = subprocess.run([*command, "--dest", place, wanted], capture_output=True, text=True)
    archives = list(place.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"the source of {wanted} cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(archives[0]) as archive:
        inside = [one for one in archive.getmembers() if one.name.split("/")[1:2] == ["tests"]]
        archive.extractall(place, members=inside, filter="data")
    root = next(path.parent for path in place.glob("*/tests"))
    for name, mixin in {
        "exporters/test_export": "ExportTesterMixin",
        "generation/test_utils": "GenerationTesterMixin",
    }.items():
        if not (root / "tests" / f"{name}.py").exists():
            (root / "tests" / f"{name}.py").parent.mkdir(exist_ok=True)
            (root / "tests" / f"{name}.py").write_text(f"class {mixin}: pass\n")
    (root / "tests" / "test_hiera.py").write_text(PROGRAM)
    return root


def outcomes(folder: Path, library: str) -> dict[str, str]:
    """How each test ended: passed, failed or skipped."""
    environment = os.environ | {"LIBRARY": library, "PYTHONPATH": str(Path(__file__).parents[1])}
    report = folder / f"{library}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}"]
    subprocess.run([*command, "tests/test_hiera.py"], cwd=folder, env=environment, capture_output=True, timeout=900)
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rsplit('.', 1)[-1]}.{case.get('name')}"
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        ended = next((outcome[part.tag] for part in case if part.tag in outcome), "passed")
        found[name] = "failed" if found.get(name) == "failed" else ended
    return found


@pytest.mark.slow
def test_what_passes_on_transformers_own_hiera_passes_on_ours(folder: Path) -> None:
    theirs, ours = (outcomes(folder, library) for library in ("transformers", "hiera_video.hf"))
    passed = {name for name, outcome in theirs.items() if outcome == "passed"}
    assert len(passed) > 50
    assert {name: ours.get(name) for name in passed if ours.get(name) != "passed"} == {}
    failed, also = ({name for name, outcome in one.items() if outcome == "failed"} for one in (ours, theirs))
    assert failed <= also
