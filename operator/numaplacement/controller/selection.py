# SPDX-License-Identifier: Apache-2.0
"""Which VMs a placement is about. Labels match as in Kubernetes (apimachinery, labels.Requirement.Matches)."""

from __future__ import annotations

from collections.abc import Mapping

from numaplacement.api.placement import LabelSelector, SelectorRequirement, VmSelection


def selects(vm: VmSelection, *, name: str, labels: Mapping[str, str]) -> bool:
    """Say whether the selection is about a VM of that name with these labels, in the placement's own namespace."""
    if vm.selector is not None:
        return matches(vm.selector, labels)
    return vm.name == name


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Say whether all parts of `selector` hold for `labels`; a selector without parts selects everything."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def _holds(requirement: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False


def describe(vm: VmSelection) -> str:
    """Return the selection in words, for messages: ``VM db`` or ``VMs with tier=edge``."""
    if vm.selector is None:
        return f"VM {vm.name}"
    parts = [f"{key}={value}" for key, value in sorted(vm.selector.match_labels.items())]
    parts += [_words(requirement) for requirement in vm.selector.match_expressions]
    return f"VMs with {', '.join(parts)}" if parts else "all VMs"


def _words(requirement: SelectorRequirement) -> str:
    values = f"({', '.join(requirement.values)})"
    match requirement.operator:
        case "In":
            return f"{requirement.key} in {values}"
        case "NotIn":
            return f"{requirement.key} not in {values}"
        case "Exists":
            return requirement.key
        case _:
            return f"!{requirement.key}"
