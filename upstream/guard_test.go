package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"entrepot/oci"
)

func TestPlaceOf(t *testing.T) {
	tests := map[string]place{
		"8.8.8.8":                         public,
		"2606:4700::1111":                 public,
		"172.15.255.255":                  public,
		"172.32.0.0":                      public,
		"100.63.255.255":                  public,
		"100.128.0.0":                     public,
		"11.0.0.0":                        public,
		"64:ff9b::8.8.8.8":                public,
		"2002:808:808::":                  public,
		"127.0.0.1":                       loopback,
		"127.255.255.254":                 loopback,
		"::1":                             loopback,
		"::ffff:127.0.0.1":                loopback,
		"::127.0.0.1":                     loopback,
		"64:ff9b::127.0.0.1":              loopback,
		"2002:7f00:1::":                   loopback,
		"10.1.2.3":                        private,
		"172.16.0.1":                      private,
		"172.31.255.255":                  private,
		"192.168.0.1":                     private,
		"100.64.0.1":                      private,
		"100.100.100.199":                 private,
		"100.100.100.200":                 linkLocal,
		"fd00:ec2::254":                   linkLocal,
		"fd20:ce::254":                    linkLocal,
		"fd00::1":                         private,
		"fc00::1":                         private,
		"fec0::1":                         private,
		"64:ff9b:1::1":                    private,
		"::ffff:10.0.0.1":                 private,
		"::ffff:0a00:0001":                private,
		"169.254.169.254":                 linkLocal,
		"::ffff:169.254.169.254":          linkLocal,
		"168.63.129.16":                   linkLocal,
		"fe80::1":                         linkLocal,
		"fe80::1%eth0":                    linkLocal,
		"64:ff9b::a9fe:a9fe":              linkLocal,
		"0.0.0.0":                         nowhere,
		"0.1.2.3":                         nowhere,
		"::":                              nowhere,
		"224.0.0.1":                       nowhere,
		"255.255.255.255":                 nowhere,
		"240.0.0.1":                       nowhere,
		"198.18.0.1":                      nowhere,
		"ff02::1":                         nowhere,
		"100::1":                          nowhere,
		"2001::1":                         nowhere,
		"2001:4860:4860::8888":            public,
		"::ffff:8.8.8.8":                  public,
		"2002:a9fe:a9fe::":                linkLocal,
		"2002:c0a8:0001:0000:0000:0000::": private,
	}
	for s, want := range tests {
		if got := placeOf(netip.MustParseAddr(s)); got != want {
			t.Errorf("placeOf(%s) = %v, want %v", s, got, want)
		}
	}
	if got := placeOf(netip.Addr{}); got != nowhere {
		t.Errorf("placeOf(no address) = %v", got)
	}
}

func TestGuard(t *testing.T) {
	tests := []struct {
		own     string
		allow   bool
		host    string
		at      string
		refused bool
	}{
		{"registry-1.docker.io", false, "auth.docker.io", "8.8.8.8", false},
		{"registry-1.docker.io", false, "auth.docker.io", "10.0.0.1", true},
		{"registry-1.docker.io", false, "auth.docker.io", "127.0.0.1", true},
		{"registry-1.docker.io", false, "auth.docker.io", "169.254.169.254", true},
		{"registry-1.docker.io", true, "auth.docker.io", "10.0.0.1", false},
		// The upstream's own host may lie anywhere, a private name's too.
		{"registry.corp.example", false, "registry.corp.example", "10.0.0.1", false},
		{"registry.corp.example", false, "Registry.Corp.Example", "10.0.0.1", false},
		{"registry.corp.example", false, "auth.corp.example", "10.0.0.2", true},
		// What is written in a place may lead to that kind of place.
		{"10.0.0.1", false, "auth.corp.example", "10.0.0.2", false},
		{"10.0.0.1", false, "auth.corp.example", "127.0.0.1", true},
		{"10.0.0.1", false, "auth.corp.example", "169.254.169.254", true},
		{"10.0.0.1", false, "auth.corp.example", "100.100.100.200", true},
		{"fd00::1", false, "auth.corp.example", "fd00:ec2::254", true},
		{"localhost", false, "auth.example", "127.0.0.1", false},
		{"localhost", false, "auth.example", "10.0.0.1", true},
		{"localhost", false, "auth.example", "169.254.169.254", true},
		{"127.0.0.1", false, "localhost", "::1", false},
		{"::1", false, "localhost", "127.0.0.1", false},
		{"169.254.1.1", false, "evil.example", "169.254.169.254", true},
		{"0.0.0.0", false, "localhost", "127.0.0.1", true},
		{"0.0.0.0", false, "evil.example", "0.0.0.0", true},
	}
	for _, tt := range tests {
		err := newGuard(tt.own, tt.allow).check(tt.host, placeOf(netip.MustParseAddr(tt.at)))
		if (err != nil) != tt.refused {
			t.Errorf("upstream at %s (allow %v) to %s at %s: %v, want refused %v", tt.own, tt.allow, tt.host, tt.at, err, tt.refused)
		}
	}
	g := newGuard("registry-1.docker.io", false)
	for host, refused := range map[string]bool{"localhost": true, "a.localhost": true, "LOCALHOST.": true, "10.0.0.1": true, "::1": true, "8.8.8.8": false, "evil.example": false} {
		if err := g.checkLiteral(host); (err != nil) != refused {
			t.Errorf("checkLiteral(%s) = %v, want refused %v", host, err, refused)
		}
	}
}

// nameServer answers every A question with the next of its addresses, the last
// one from then on, and counts the questions by name.
type nameServer struct {
	conn net.PacketConn
	wg   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	addrs map[string][]string
	asked map[string]int
}

func newNameServer(t *testing.T, addrs map[string][]string) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, addrs: addrs, asked: map[string]int{}}
	s.wg.Go(s.serve)
	t.Cleanup(func() {
		conn.Close()
		s.wg.Wait()
	})
	return s
}

func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
}

func (s *nameServer) serve() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			if addr, ok := s.next(strings.TrimSuffix(q.Name.String(), ".")); ok {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: addr.As4()},
				}}
			} else {
				m.RCode = dnsmessage.RCodeNameError
			}
		}
		packed, err := m.Pack()
		if err == nil {
			_, _ = s.conn.WriteTo(packed, from)
		}
	}
}

func (s *nameServer) next(name string) (netip.Addr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.addrs[name]
	if len(list) == 0 {
		return netip.Addr{}, false
	}
	i := min(s.asked[name], len(list)-1)
	s.asked[name]++
	return netip.MustParseAddr(list[i]), true
}

// The address that counts is the one that is dialled. The upstream's name leads
// to this machine, which is fine, since the operator wrote it; names that it
// leads to must not.
func TestTheDialledAddressIsChecked(t *testing.T) {
	reached := false
	inside := listen(t, func(http.ResponseWriter, *http.Request) { reached = true })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(inside, "http://"))
	names := newNameServer(t, map[string][]string{
		"registry.test": {"127.0.0.1"},
		"cdn.test":      {"127.0.0.1"},
		"auth.test":     {"127.0.0.1"},
		"meta.test":     {"169.254.169.254"},
	})
	var location, challenge string
	front := listen(t, func(w http.ResponseWriter, _ *http.Request) {
		if challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Location", location)
		w.WriteHeader(307)
	})
	_, own, _ := net.SplitHostPort(strings.TrimPrefix(front, "http://"))
	tests := []struct{ name, location, challenge string }{
		{"redirect", "http://cdn.test:" + port + "/", ""},
		{"redirect to the metadata service", "http://meta.test/", ""},
		{"realm", "", `Bearer realm="http://auth.test:` + port + `/token"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			location, challenge = tt.location, tt.challenge
			var rec recorder
			cfg := Config{Name: "registry.test", URL: "http://registry.test:" + own}
			rec.attach(&cfg)
			c, err := newClient(cfg, dialer{resolver: names.resolver()}, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = read(t.Context(), openBlob(t, c, alpine, oci.Sum(nil)), 0, -1)
			wantCode(t, err, oci.BadUpstream)
			if diff := cmp.Diff([]Trouble{AddressRefused}, rec.troubles()); diff != "" {
				t.Error(diff)
			}
			if reached {
				t.Error("a request went to a private address")
			}
		})
	}
	// The operator may allow it.
	location, challenge = tests[0].location, ""
	c, err := newClient(Config{Name: "registry.test", URL: "http://registry.test:" + own, AllowPrivate: true}, dialer{resolver: names.resolver()}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := read(t.Context(), openBlob(t, c, alpine, oci.Sum(nil)), 0, -1); err != nil || !reached {
		t.Errorf("with private addresses allowed: %v, reached %v", err, reached)
	}
}

// A name that is public when it is looked at and private when it is dialled
// would need two look-ups. There is one for each dial, and its result is what
// is checked.
func TestRebinding(t *testing.T) {
	names := newNameServer(t, map[string][]string{"cdn.test": {"127.0.0.1"}})
	d := dialer{guard: newGuard("registry.example", false), timeout: time.Second, resolver: names.resolver()}
	_, err := d.dial(t.Context(), "tcp4", "cdn.test:80")
	if refused, ok := errors.AsType[*refusedAddress](err); !ok || refused.at != loopback {
		t.Errorf("got %v, want that the address is refused", err)
	}
	names.mu.Lock()
	defer names.mu.Unlock()
	if n := names.asked["cdn.test"]; n != 1 {
		t.Errorf("%d look-ups for one dial, want 1", n)
	}
}
