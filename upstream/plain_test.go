package upstream

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// jargon is what only those understand who know Go's library, or the kernel.
var jargon = regexp.MustCompile(`dial tcp|net/http|x509|tls:|EOF|i/o |deadline|lookup|connect:|read:|->`)

// whatFails is the reason that operators read of a host that does not answer, by way
// of status and the log.
func whatFails(t *testing.T, c *Client) string {
	t.Helper()
	for range tripAfter {
		if err := resolve(t, c); err == nil {
			t.Fatal("it is answered")
		}
	}
	for _, b := range c.Breakers() {
		if b.Err != nil {
			return oci.Causes(b.Err)
		}
	}
	t.Fatal("no host is in trouble")
	return ""
}

// What a host fails of is told in words, with the address that says where to look.
func TestTroubleIsToldInPlainWords(t *testing.T) {
	somewhere := listen(t, nil)
	hijack := func(last func(*net.TCPConn)) string {
		return listen(t, func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			last(conn.(*net.TCPConn))
			conn.Close()
		})
	}
	secure := httptest.NewUnstartedServer(nil)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	fails := func(op string, err error) func(*Config) {
		return func(cfg *Config) {
			cfg.Dial = func(_ context.Context, network, _ string) (net.Conn, error) {
				return nil, &net.OpError{Op: op, Net: network, Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}, Err: err}
			}
		}
	}
	plain := func(*Config) {}
	for name, row := range map[string]struct {
		url    string
		change func(*Config)
		want   string // behind the host
	}{
		"refused":     {somewhere, fails("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED)), `it cannot be reached: 192\.0\.2\.1:443 refuses the connection`},
		"no route":    {somewhere, fails("dial", os.NewSyscallError("connect", syscall.EHOSTUNREACH)), `it cannot be reached: no network leads to 192\.0\.2\.1:443`},
		"black hole":  {somewhere, fails("dial", os.ErrDeadlineExceeded), `no answer in time: 192\.0\.2\.1:443 does not answer`},
		"forbidden":   {somewhere, fails("dial", os.NewSyscallError("connect", syscall.EPERM)), `it cannot be reached: 192\.0\.2\.1:443: operation not permitted`},
		"no name":     {somewhere, fails("dial", &net.DNSError{Err: "no such host", Name: "a", Server: "192.0.2.53:53", IsNotFound: true}), `its name cannot be resolved: it is unknown to the name server 192\.0\.2\.53:53`},
		"mute names":  {somewhere, fails("dial", &net.DNSError{Err: "i/o timeout", Name: "a", IsTimeout: true}), `no answer in time: no answer by the name server`},
		"other names": {somewhere, fails("dial", &net.DNSError{Err: "server misbehaving", Name: "a"}), `its name cannot be resolved: trouble of the name server: server misbehaving`},
		"proxy": {"https://localhost:1", func(cfg *Config) {
			fails("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED))(cfg)
			proxy, err := url.Parse("http://proxy.example:3128")
			cfg.Proxy = func(*http.Request) (*url.URL, error) { return proxy, err }
		}, `it cannot be reached: the proxy: 192\.0\.2\.1:443 refuses the connection`},
		"reset":    {hijack(func(c *net.TCPConn) { _ = c.SetLinger(0) }), plain, `the connection broke: it was reset by the other side`},
		"closed":   {hijack(func(*net.TCPConn) {}), plain, `the connection broke: it was closed before the answer was there`},
		"no HTTP":  {hijack(func(c *net.TCPConn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")) }), plain, `it does not speak proper HTTP: malformed HTTP response "SSH-2\.0-x"`},
		"no TLS":   {strings.Replace(somewhere, "http:", "https:", 1), plain, `its certificate or TLS handshake was refused: it speaks no TLS`},
		"stranger": {strings.Replace(secure.URL, "127.0.0.1", "localhost", 1), plain, `its certificate or TLS handshake was refused: certificate .*`},
	} {
		t.Run(name, func(t *testing.T) {
			got := whatFails(t, connectAt(t, row.url, newClock().now, row.change))
			if !regexp.MustCompile(`^unavailable: localhost:\d+: `+row.want+`$`).MatchString(got) || jargon.MatchString(got) {
				t.Errorf("%s\nwant %s", got, row.want)
			}
		})
	}
	simulate(t, ocitest.Config{}, func(w *world) {
		inject(ocitest.Hang())(w.hub)
		if got := whatFails(w.t, w.connect()); !strings.HasSuffix(got, ": no answer in time") || jargon.MatchString(got) {
			w.t.Errorf("of what hangs: %s", got)
		}
	})
}

// The words take nothing away from who goes by the error itself.
func TestPlainWordsKeepTheError(t *testing.T) {
	cause := &net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}
	err := failure(t.Context(), "a.example", &url.Error{Op: "Get", URL: "https://a.example/?signature=secret", Err: cause}, nil)
	if _, ok := errors.AsType[*net.DNSError](err); !ok || strings.Contains(oci.Causes(err), "secret") {
		t.Errorf("%v", oci.Causes(err))
	}
}
