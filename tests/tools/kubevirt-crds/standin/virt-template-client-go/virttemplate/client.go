// SPDX-License-Identifier: Apache-2.0

// Package virttemplate stands in for kubevirt.io/virt-template-client-go, whose module not every module proxy serves.
package virttemplate

import (
	"errors"

	"k8s.io/client-go/rest"
)

// Clientset has the one chain of calls KubeVirt's informer factory compiles against.
type Clientset struct{}

// NewForConfig always fails: printing CRDs needs no client.
func NewForConfig(*rest.Config) (*Clientset, error) {
	return nil, errors.New("the VM template client is not part of this build")
}

// TemplateV1beta1 returns itself, since NewForConfig never hands a Clientset out.
func (c *Clientset) TemplateV1beta1() *Clientset { return c }

// RESTClient returns no client, for the same reason.
func (*Clientset) RESTClient() rest.Interface { return nil }
