// SPDX-License-Identifier: Apache-2.0

// Package v1beta1 stands in for the VM template types KubeVirt's informer factory names.
package v1beta1

import "k8s.io/apimachinery/pkg/runtime"

// VirtualMachineTemplate has no content here: no informer for it is ever started.
type VirtualMachineTemplate struct{ runtime.Unknown }
