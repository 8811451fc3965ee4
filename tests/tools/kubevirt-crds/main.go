// SPDX-License-Identifier: Apache-2.0

// kubevirt-crds prints the CustomResourceDefinitions a test API server needs to hold VirtualMachineInstances to
// KubeVirt's own schema, as a YAML stream. They come out of the generator KubeVirt's operator installs them with, so
// nothing of KubeVirt is copied into this repository.
package main

import (
	"fmt"
	"os"

	extv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubevirt-crds:", err)
		os.Exit(1)
	}
}

func run() error {
	generators := []func() (*extv1.CustomResourceDefinition, error){
		components.NewVirtualMachineInstanceCrd,
		components.NewVirtualMachineInstanceMigrationCrd,
	}
	for _, generate := range generators {
		crd, err := generate()
		if err != nil {
			return err
		}
		// A status sent on create is what a running API server would have written itself.
		crd.Status = extv1.CustomResourceDefinitionStatus{}
		text, err := yaml.Marshal(crd)
		if err != nil {
			return fmt.Errorf("%s: %w", crd.Name, err)
		}
		if _, err := fmt.Printf("---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}
