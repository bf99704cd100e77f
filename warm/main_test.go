package warm_test

import (
	"testing"

	"entrepot/internal/ocitest"
)

func TestMain(m *testing.M) { ocitest.Main(m) }
