// Command kubecheck reads Kubernetes manifests from standard input and fails
// unless each is an object that the API knows, with no field that it does not.
// The Prometheus operator's kinds, which it cannot know, it lists and lets pass.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	if err := check(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kubecheck:", err)
		os.Exit(1)
	}
}

func check(in io.Reader, out io.Writer) error {
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(in))
	for n := 0; ; n++ {
		document, err := documents.Read()
		switch {
		case errors.Is(err, io.EOF) && n == 0:
			return errors.New("there is nothing in it")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case strings.TrimSpace(string(document)) == "":
			continue
		}
		object, _, err := strict.Decode(document, nil, nil)
		var kind metav1.TypeMeta
		switch {
		case runtime.IsNotRegisteredError(err) && yaml.Unmarshal(document, &kind) == nil && strings.HasPrefix(kind.APIVersion, "monitoring.coreos.com/"):
			fmt.Fprintf(out, "%s, which is an operator's\n", kind.GroupVersionKind())
		case err != nil:
			return fmt.Errorf("document %d: %w\n%s", n+1, err, document)
		default:
			fmt.Fprintf(out, "%s\n", object.GetObjectKind().GroupVersionKind())
		}
	}
}
