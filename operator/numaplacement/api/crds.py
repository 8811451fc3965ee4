# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinitions, made from the models; ``make crds`` writes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from .host import NumaHostStatus
from .migration import NumaMigrationSpec, NumaMigrationStatus
from .placement import NumaPlacementSpec, NumaPlacementStatus
from .resources import CATEGORY, HOSTS, MIGRATIONS, PLACEMENTS, NumaHost, NumaMigration, NumaPlacement, Resource
from .schema import Schema, structural


@dataclass(frozen=True)
class Column:
    """One column of ``kubectl get``."""

    name: str
    path: str
    kind: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Definition:
    """All that makes a CustomResourceDefinition."""

    resource: Resource
    short_name: str
    model: type[pydantic.BaseModel]
    spec: type[pydantic.BaseModel] | None
    status: type[pydantic.BaseModel]
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    status_default: Schema | None = None


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_UNSEEN = {"observedGeneration": -1}

DEFINITIONS = (
    Definition(
        resource=PLACEMENTS,
        short_name="nump",
        model=NumaPlacement,
        spec=NumaPlacementSpec,
        status=NumaPlacementStatus,
        status_default=_UNSEEN,
        columns=(
            Column("VM", ".spec.vm.name", description="VirtualMachineInstance whose memory is meant"),
            Column("NUMA node", ".spec.numaNode", "integer", "NUMA node where it belongs"),
            Column("Ready", _condition("Ready", "status"), description="Whether all of it is there"),
            Column("Reason", _condition("Ready", "reason"), description="Why, in a word"),
            Column("On target", ".status.summary.onTarget", description="Share of the memory that is where it belongs"),
            Column("Residue", ".status.summary.left", description="Memory that is not"),
            _AGE,
            Column("Message", _condition("Ready", "message"), description="Why, in a sentence", priority=1),
        ),
    ),
    Definition(
        resource=MIGRATIONS,
        short_name="numam",
        model=NumaMigration,
        spec=NumaMigrationSpec,
        status=NumaMigrationStatus,
        status_default=_UNSEEN,
        selectable=(".spec.nodeName",),
        columns=(
            Column("VM", ".spec.vm.name", description="VirtualMachineInstance whose memory is moved"),
            Column("Host", ".spec.nodeName", description="Host whose agent carries the order out"),
            Column("NUMA node", ".spec.target.numaNode", "integer", "NUMA node where the memory belongs"),
            Column("Stage", ".status.progress.stage", description="What the agent is doing now"),
            Column("Result", ".status.result", description="How it ended"),
            Column("Reason", _condition("Ready", "reason"), description="Why, in a word"),
            Column("Moved", ".status.moved", "integer", "Bytes moved"),
            _AGE,
            Column("Message", _condition("Ready", "message"), description="Why, in a sentence", priority=1),
        ),
    ),
    Definition(
        resource=HOSTS,
        short_name="numah",
        model=NumaHost,
        spec=None,
        status=NumaHostStatus,
        columns=(
            Column("NUMA nodes", ".status.numaNodeList", description="Numbers of its NUMA nodes"),
            Column("Ready", _condition("Ready", "status"), description="Whether its agent can move memory"),
            Column("Reason", _condition("Ready", "reason"), description="Why, in a word"),
            Column("Kernel", ".status.kernel", description="Release of its kernel"),
            Column("Agent", ".status.agentVersion", description="Version of its agent"),
            _AGE,
            Column("Message", _condition("Ready", "message"), description="Why, in a sentence", priority=1),
        ),
    ),
)


def definition_document(definition: Definition) -> dict[str, Any]:
    """Return the CustomResourceDefinition of `definition` as plain data."""
    resource = definition.resource
    properties: dict[str, Schema] = {
        "apiVersion": {"type": "string", "description": "Version of this representation of the object."},
        "kind": {"type": "string", "description": "Kind of the object."},
        "metadata": {"type": "object"},
    }
    schema: Schema = {"type": "object", "description": _sentence(definition.model), "properties": properties}
    if definition.spec is not None:
        properties["spec"] = structural(definition.spec)
        schema["required"] = ["spec"]
    properties["status"] = structural(definition.status, defaults=False)
    if definition.status_default is not None:
        properties["status"]["default"] = definition.status_default
    version: dict[str, Any] = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in definition.columns],
    }
    if definition.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in definition.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{resource.group}"},
        "spec": {
            "group": resource.group,
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [definition.short_name],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [version],
        },
    }


def _sentence(model: type[pydantic.BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _column(column: Column) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": column.name, "type": column.kind, "jsonPath": column.path}
    if column.description:
        entry["description"] = column.description
    if column.priority:
        entry["priority"] = column.priority
    return entry


def file_name(definition: Definition) -> str:
    """Return the name of the file that holds the definition."""
    return f"{definition.resource.group}_{definition.resource.plural}.yaml"


def file_text(definition: Definition) -> str:
    """Return the definition as YAML, with a line that says how the file is made."""
    body = yaml.safe_dump(definition_document(definition), sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated by `make crds` from operator/numaplacement/api. Do not edit.\n{body}"


def chart_text(definition: Definition) -> str:
    """Return the definition as a template of the Helm chart: it can be left out, and by default outlives the chart."""
    document = definition_document(definition)
    body = yaml.safe_dump(document["spec"], sort_keys=False, width=120, allow_unicode=True)
    spec = "".join(f"  {line}\n" for line in body.splitlines())
    return (
        "{{- /* Generated by `make crds` from operator/numaplacement/api. Do not edit. */ -}}\n"
        "{{- if .Values.crds.enabled }}\n"
        f"apiVersion: {document['apiVersion']}\n"
        f"kind: {document['kind']}\n"
        "metadata:\n"
        f"  name: {document['metadata']['name']}\n"
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
        f"spec:\n{spec}"
        "{{- end }}\n"
    )


def main(arguments: list[str]) -> None:
    """Write all definitions: as manifests into the first directory named, as chart templates into the second."""
    manifests, templates = map(Path, arguments)
    for definition in DEFINITIONS:
        (manifests / file_name(definition)).write_text(file_text(definition), encoding="utf-8")
        (templates / f"crd-{definition.resource.plural}.yaml").write_text(chart_text(definition), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
