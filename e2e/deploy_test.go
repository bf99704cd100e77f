//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// readBy gives text to a command, and returns what it says.
func readBy(t *testing.T, text string, command ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

func TestKubernetesManifestsAreObjectsOfTheAPI(t *testing.T) {
	text, err := os.ReadFile("../deploy/kubernetes/entrepot.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := readBy(t, string(text), kubecheckBin); !strings.Contains(got, "apps/v1, Kind=Deployment") {
		t.Errorf("there is no deployment in\n%s", got)
	}
}

// The chart with nothing set, and with all that it has a switch for.
func TestHelmChart(t *testing.T) {
	const chart = "../deploy/helm/entrepot"
	all := []string{
		"--set", "tls.secretName=cert", "--set", "serviceMonitor.enabled=true", "--set", "prometheusRule.enabled=true",
		"--set", "secrets.ENTREPOT_DOCKERHUB_PASSWORD.name=hub", "--set", "secrets.ENTREPOT_DOCKERHUB_PASSWORD.key=token",
		"--set", "settings.ENTREPOT_DOCKERHUB_USERNAME=me", "--set", "persistence.storageClassName=fast", "--set", "service.type=LoadBalancer",
		"--set", "nodeSelector.disk=big", "--set", "tolerations[0].operator=Exists", "--set", "priorityClassName=system-cluster-critical",
		"--set", "serviceMonitor.labels.release=prometheus", "--set", "imagePullSecrets[0].name=pull",
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + tempDir(t)}
	secure := []string{"--values", "../deploy/helm/secure.yaml"}
	for name, set := range map[string][]string{"as it is": nil, "all of it": all, "secure": secure} {
		t.Run(name, func(t *testing.T) {
			run(t, env, append([]string{helmBin, "lint", "--strict", chart}, set...)...)
			text := run(t, env, append([]string{helmBin, "template", "cache", chart}, set...)...)
			objects := readBy(t, text, kubecheckBin)
			if monitored := strings.Contains(objects, "Kind=PrometheusRule"); monitored != (set != nil) {
				t.Errorf("the chart made\n%s", objects)
			}
			if strings.Contains(text, "/healthz") || !strings.Contains(text, "command: [/entrepot, healthcheck]") {
				t.Error("the kubelet asks itself whether the registry is well, and has no certificate to show where one is required")
			}
			checkSettings(t, text)
		})
	}
}

// Numbers of YAML reach the server as they are written.
func TestHelmChartWritesNumbersOut(t *testing.T) {
	values := filepath.Join(tempDir(t), "values.yaml")
	write(t, values, "settings:\n  ENTREPOT_CACHE_SIZE: 200000000000\n  ENTREPOT_UPSTREAM_0_RATE: 2.5\n  ENTREPOT_OFFLINE: true\n")
	text := run(t, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + tempDir(t)}, helmBin, "template", "cache", "../deploy/helm/entrepot", "--values", values)
	for _, want := range []string{"200000000000", "2.5", "true"} {
		if !strings.Contains(text, "value: \""+want+"\"") {
			t.Errorf("there is no %s in\n%s", want, text)
		}
	}
}

// checkSettings starts no server with settings that it does not know: a container
// would end there and then.
func checkSettings(t *testing.T, text string) {
	t.Helper()
	env := []string{"ENTREPOT_LISTEN=127.0.0.1:0"}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "- name: ENTREPOT_")
		value, isValue := strings.CutPrefix(strings.TrimSpace(lines[min(i+1, len(lines)-1)]), "value: ")
		if ok && isValue && !strings.HasSuffix(name, "_FILE") { // its files are in the container
			env = append(env, "ENTREPOT_"+name+"="+strings.Trim(value, `"`))
		}
		if ok && strings.HasSuffix(name, "PASSWORD_FILE") {
			env = append(env, "ENTREPOT_"+strings.TrimSuffix(name, "_FILE")+"=secret")
		}
	}
	if out := run(t, env, entrepotBin, "config"); !strings.Contains(out, "180GiB") {
		t.Errorf("the settings of the chart are not in\n%s", out)
	}
}

// The unit as systemd reads it. Its program is where the unit says, in a root of
// its own.
func TestSystemdUnit(t *testing.T) {
	root := tempDir(t)
	unit, err := os.ReadFile("../deploy/systemd/entrepot.service")
	if err != nil {
		t.Fatal(err)
	}
	if text := string(unit); strings.Contains(text, "\nType=notify\n") && !strings.Contains(text, "\nTimeoutStartSec=infinity\n") {
		t.Error("a start that waits for the data directory is ended by systemd's own bound")
	}
	path := filepath.Join(root, "entrepot.service")
	write(t, path, strings.ReplaceAll(string(unit), "/usr/local/bin/entrepot", entrepotBin))
	dropIn, err := os.ReadFile("../deploy/systemd/secure.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path+".d", "secure.conf"), string(dropIn))
	env := []string{"PATH=" + os.Getenv("PATH"), "SYSTEMD_UNIT_PATH=" + root + ":"}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", path)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	run(t, env, "systemd-analyze", "security", "--offline=true", "--threshold=15", path) // in tenths; 100 is a unit without any of this
}

func TestComposeFile(t *testing.T) {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + tempDir(t)}
	compose := []string{"docker-compose", "--file", "../deploy/compose/compose.yaml"}
	run(t, env, append(compose, "config", "--quiet")...)
	if text := run(t, env, append(compose, "--file", "../deploy/compose/secure.yaml", "config")...); !strings.Contains(text, "ENTREPOT_USERS_FILE: /config/users") || !strings.Contains(text, "/config:/config:ro") {
		t.Errorf("with secure.yaml there is no file of users:\n%s", text)
	}
}

// Each alert fires when it should, and not on a quiet day.
func TestAlerts(t *testing.T) {
	env := []string{"PATH=" + os.Getenv("PATH")}
	run(t, env, "promtool", "check", "rules", "../deploy/helm/entrepot/alerts.yaml")
	run(t, env, "promtool", "test", "rules", "../deploy/prometheus/alerts_test.yaml")
}
