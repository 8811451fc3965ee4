# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pydantic
import pytest

from numaplacement.api import crds, placement, schema
from numaplacement.api.crds import DEFINITIONS, definition_document

CRDS = Path(__file__).parents[2] / "crds"


def walk(node, path=""):
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from walk(node[key], f"{path}[]")


def schema_of(definition):
    return definition_document(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=crds.file_name)
def test_the_files_are_what_the_models_say(definition):
    assert (CRDS / crds.file_name(definition)).read_text() == crds.file_text(definition), "run `make crds`"


def test_no_other_file_lies_beside_them():
    expected = {crds.file_name(definition) for definition in DEFINITIONS} | {"kustomization.yaml"}
    assert {path.name for path in CRDS.iterdir()} == expected


@pytest.mark.parametrize("definition", DEFINITIONS, ids=crds.file_name)
def test_kubectl_explain_has_a_text_for_each_field(definition):
    bare = [
        path
        for path, node in walk(schema_of(definition))
        if path != ".metadata" and not path.endswith("[]") and not node.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("definition", DEFINITIONS, ids=crds.file_name)
def test_every_list_map_and_string_is_bounded(definition):
    top = {".apiVersion", ".kind"}
    loose = [
        path
        for path, node in walk(schema_of(definition))
        if path not in top
        and (
            (node.get("type") == "array" and "maxItems" not in node)
            or (node.get("type") == "string" and not {"maxLength", "enum", "format"} & set(node))
            or ("additionalProperties" in node and "maxProperties" not in node)
        )
    ]
    assert loose == []


@pytest.mark.parametrize("definition", DEFINITIONS, ids=crds.file_name)
def test_every_list_says_how_it_merges(definition):
    assert [
        path
        for path, node in walk(schema_of(definition))
        if node.get("type") == "array" and "x-kubernetes-list-type" not in node
    ] == []


def test_a_fresh_object_does_not_look_healthy_to_kstatus():
    for definition in DEFINITIONS[:2]:
        assert schema_of(definition)["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_a_status_has_no_other_defaults():
    for definition in DEFINITIONS:
        nodes = list(walk(schema_of(definition)["properties"]["status"]))[1:]
        assert [path for path, node in nodes if "default" in node] == []


def test_allowance_set_has_room_for_every_word():
    assert placement.SET_LIST["maxItems"] == len(placement.Allowance)


def test_a_union_of_types_is_refused():
    class Loose(schema.Model):
        field: int | list[int]

    with pytest.raises(ValueError, match=r"Loose\.field: a structural schema has no union"):
        schema.structural(Loose)


def test_unknown_fields_of_a_spec_are_refused_and_of_a_status_ignored():
    with pytest.raises(pydantic.ValidationError):
        placement.NumaPlacementSpec.model_validate({"vm": {"name": "db"}, "numaNode": 0, "numanode": 1})
    assert placement.NumaPlacementStatus.model_validate({"fromTheFuture": 1}).observed_generation == -1
