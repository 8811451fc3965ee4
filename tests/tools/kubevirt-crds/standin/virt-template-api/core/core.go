// SPDX-License-Identifier: Apache-2.0

// Package core stands in for kubevirt.io/virt-template-api, whose module not every module proxy serves. KubeVirt's
// informer factory names these constants; printing CRDs never uses them.
package core

const (
	GroupName            = "template.kubevirt.io"
	SingularResourceName = "virtualmachinetemplate"
	PluralResourceName   = "virtualmachinetemplates"
)
