# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml

from numaplacement import __version__
from numaplacement.api import crds

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "charts" / "numaplacement" / "templates"


@pytest.mark.parametrize("definition", crds.DEFINITIONS, ids=crds.file_name)
def test_the_charts_definitions_are_what_the_models_say(definition):
    path = TEMPLATES / f"crd-{definition.resource.plural}.yaml"
    assert path.read_text() == crds.chart_text(definition), "run `make crds`"


@pytest.mark.parametrize("part", ["controller", "agent"])
def test_the_chart_gives_the_same_rights_as_the_manifests(part):
    manifest = (ROOT / "manifests" / "base" / part / "rbac.yaml").read_text()
    rules = next(yaml.safe_load_all(manifest))["rules"]
    chart = (TEMPLATES / f"{part}-rbac.yaml").read_text()
    block = chart[chart.index("rules:") :]
    assert yaml.safe_load(block[: block.index("---")])["rules"] == rules


def test_the_version_stands_the_same_everywhere():
    chart = yaml.safe_load((ROOT / "charts" / "numaplacement" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
