package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"proa/test/proatest"
)

var digestWord = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// A round trip through Docker's own registry keeps every digest, by both
// command lines, and what was pulled runs.
func TestRegistryRoundTrip(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	addr := "127.0.0.1:5000"
	proatest.Distribution(t, e.Netns, addr, t.TempDir())
	name := addr + "/team/bb:v1"
	e.MustProa("tag", "bb", name)
	holds := func(text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("%q does not hold %q", text, p)
			}
		}
	}
	id := e.MustProa("image", "inspect", "-f", "{{.Id}}", "bb")
	out := e.MustProa("push", name)
	holds(out, "The push refers to repository ["+addr+"/team/bb]", "Preparing", "Pushed", "v1: digest: sha256:")
	pushed := digestWord.FindString(out)
	holds(e.MustDocker("push", name), "Layer already exists", "v1: digest: "+pushed)
	e.MustProa("rmi", "bb", name)
	if out := e.MustProa("images", "-q"); out != "" {
		t.Fatalf("still here: %q", out)
	}

	out = e.MustDocker("pull", name)
	holds(out, "v1: Pulling from team/bb", "Pulling fs layer", "Download complete", "Pull complete", "Digest: "+pushed, "Status: Downloaded newer image for "+name)
	if got := e.MustProa("image", "inspect", "-f", "{{.Id}} {{index .RepoDigests 0}}", name); got != id+" "+addr+"/team/bb@"+pushed {
		t.Errorf("pulled %s, want %s and %s", got, id, pushed)
	}
	holds(e.MustProa("pull", name), "Status: Image is up to date for "+name)
	if got := e.MustProa("pull", "-q", name); got != name {
		t.Errorf("pull -q printed %q", got)
	}
	e.MustProa("rmi", name)

	// A run fetches what is missing, and says so where it is no output of the run.
	res := e.Proa("run", "--rm", "--network", "none", name, "echo", "it runs")
	if res.Code != 0 || res.Stdout != "it runs\n" {
		t.Errorf("run of a missing image: %+v", res)
	}
	holds(res.Stderr, "Unable to find image '"+name+"' locally", "Pull complete")
	e.MustProa("rmi", name)
	if res := e.Docker("run", "--rm", "--network", "none", name, "echo", "it runs"); res.Code != 0 || res.Stdout != "it runs\n" {
		t.Errorf("docker run of a missing image: %+v", res)
	}
	if res := e.Proa("run", "-q", "--pull", "always", "--rm", "--network", "none", name, "true"); res.Code != 0 || res.Stderr != "" {
		t.Errorf("run -q --pull always: %+v", res)
	}
	e.MustProa("rmi", name)
	if res := e.Proa("run", "--pull", "never", "--rm", name, "true"); res.Code != 125 || !strings.Contains(res.Stderr, "No such image") || !strings.Contains(res.Stderr, "--pull never") {
		t.Errorf("run --pull never: %+v", res)
	}

	// By its digest, and every tag.
	e.MustProa("pull", addr+"/team/bb@"+pushed)
	holds(e.MustProa("images", "--digests"), pushed, "<none>")
	e.MustDocker("tag", addr+"/team/bb@"+pushed, addr+"/team/bb:v2")
	holds(e.MustProa("push", "-a", addr+"/team/bb"), "v2: digest: "+pushed)
	e.MustProa("image", "prune", "-af")
	holds(e.MustProa("pull", "-a", addr+"/team/bb"), "v1: Pulling from", "v2: Pulling from")
	holds(e.MustProa("images", addr+"/team/bb", "--format", "{{.Tag}}"), "v1", "v2")
	holds(e.Request("GET", "/distribution/"+name+"/json"), "200 OK", pushed, `"architecture":"amd64"`)

	for _, c := range []struct {
		args []string
		says []string
	}{
		{[]string{"pull", addr + "/team/bb:v3"}, []string{"manifest for " + addr + "/team/bb:v3 not found", "it has v1 and v2"}},
		{[]string{"pull", addr + "/nosuch"}, []string{"no repository \"nosuch\""}},
		{[]string{"pull", "127.0.0.1:1/x"}, []string{"nothing listens there"}},
		{[]string{"pull", "no/such:tag:tag"}, []string{"invalid image name"}},
		{[]string{"pull", "192.0.2.2:5001/x"}, []string{"192.0.2.2:5001"}},
		{[]string{"push", addr + "/team/nosuch:v1"}, []string{"does not exist locally"}},
		{[]string{"pull", "--platform", "linux/s390x", name}, []string{"linux/s390x", "linux/amd64"}},
	} {
		res := e.Proa(c.args...)
		if res.Code != 1 {
			t.Errorf("%v: exit code %d", c.args, res.Code)
		}
		for _, s := range c.says {
			if !strings.Contains(res.Stderr, s) {
				t.Errorf("%v says %q, not %q", c.args, res.Stderr, s)
			}
		}
	}
}

// certificate makes a key pair for 127.0.0.1 signed by itself.
func certificate(t *testing.T, dir string, until time.Time, names ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a registry"}, NotBefore: until.Add(-48 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// A registry with TLS and passwords: trust by a file for its host, login by
// both command lines, and words for what is wrong.
func TestRegistryWithPassword(t *testing.T) {
	certs := t.TempDir()
	e := proatest.New(t, proatest.Args("--certs-dir", certs))
	e.ImportBusybox("bb")
	dir := t.TempDir()
	cert, key := certificate(t, dir, time.Now().Add(24*time.Hour), "127.0.0.1")
	hash, err := bcrypt.GenerateFromPassword([]byte("right horse"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(passwd, []byte("ada:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:5443"
	proatest.DistributionWith(t, e.Netns, addr, t.TempDir(), withTLS(cert, key), fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}", passwd))
	name := addr + "/bb:v1"
	e.MustProa("tag", "bb", name)

	says := func(res proatest.Result, code int, parts ...string) {
		t.Helper()
		if res.Code != code {
			t.Errorf("exit code %d, want %d: %s%s", res.Code, code, res.Stdout, res.Stderr)
		}
		for _, p := range parts {
			if !strings.Contains(res.Stdout+res.Stderr, p) {
				t.Errorf("%q does not hold %q", res.Stdout+res.Stderr, p)
			}
		}
	}
	says(e.Proa("push", name), 1, "signed by an authority that this host does not know", filepath.Join(certs, addr, "ca.crt"))
	if err := os.Mkdir(filepath.Join(certs, addr), 0o700); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, addr, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	says(e.Proa("push", name), 1, "401", "log in first", "hint: proa login "+addr)

	proa := filepath.Join(proatest.Bin(t), "proa")
	says(e.Exec("wrong\n", proa, "-H", e.Host, "login", "-u", "ada", "--password-stdin", addr), 1, "wrong user name, password or token")
	says(e.Exec("", proa, "-H", e.Host, "login", addr), 1, "not a terminal", "--password-stdin")
	config := filepath.Join(e.Dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"detachKeys":"ctrl-x","auths":{}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	says(e.Exec("right horse\n", proa, "-H", e.Host, "login", "-u", "ada", "--password-stdin", addr), 0, "Login Succeeded", "unencrypted")
	b, _ := os.ReadFile(config)
	if fi, err := os.Stat(config); err != nil || fi.Mode().Perm() != 0o600 || !strings.Contains(string(b), "ctrl-x") || !strings.Contains(string(b), addr) {
		t.Errorf("config.json: %v %s", err, b)
	}
	out := e.MustProa("push", name)
	pushed := digestWord.FindString(out)
	says(e.Docker("pull", name), 0, pushed)
	e.MustProa("rmi", name, "bb")
	says(e.Proa("pull", name), 0, pushed)
	says(e.Docker("pull", name), 0, "up to date")
	// A FROM is told the same, with these credentials and without, to every client.
	unknown := addr + "/bb:nosuch"
	dir = buildContext(t, "Dockerfile", "FROM "+unknown+"\n")
	says(e.Proa("build", dir), 1, "manifest for "+unknown+" not found: the repository has no such tag; it has v1\n")
	says(e.Docker("build", dir), 1, "manifest for "+unknown+" not found: the repository has no such tag; it has v1\n")
	says(e.Proa("logout", addr), 0, "Removing login credentials for "+addr)
	says(e.Proa("build", dir), 1, "401", "\nhint: proa login "+addr+", or docker login "+addr+"\n")
	says(e.Docker("build", dir), 1, "401", "\nhint: proa login "+addr+", or docker login "+addr+"\n")
	says(e.Proa("logout", addr), 0, "Not logged in to "+addr)
	says(e.Proa("pull", name), 1, "401", "log in first")
	says(e.Exec("right horse", proatest.DockerCLI(t), "-H", e.Host, "login", "-u", "ada", "--password-stdin", addr), 0, "Login Succeeded")
	says(e.Proa("pull", name), 0, "up to date")
	says(e.Exec("wrong horse", proatest.DockerCLI(t), "-H", e.Host, "login", "-u", "ada", "--password-stdin", addr), 1, "wrong user name, password")
	says(e.Docker("logout", addr), 0)

	// An expired certificate that is trusted otherwise.
	old := t.TempDir()
	cert, key = certificate(t, old, time.Now().Add(-time.Hour), "127.0.0.1")
	proatest.DistributionWith(t, e.Netns, "127.0.0.1:5444", t.TempDir(), withTLS(cert, key), "")
	trust(t, certs, "127.0.0.1:5444", cert)
	says(e.Proa("pull", "127.0.0.1:5444/bb"), 1, "its certificate expired on", "renew the certificate")
	// One for another name.
	cert, key = certificate(t, t.TempDir(), time.Now().Add(time.Hour), "registry.example")
	proatest.DistributionWith(t, e.Netns, "127.0.0.1:5445", t.TempDir(), withTLS(cert, key), "")
	trust(t, certs, "127.0.0.1:5445", cert)
	says(e.Proa("pull", "127.0.0.1:5445/bb"), 1, "its certificate is for another name")
	// None at all, elsewhere than on loopback: 192.0.2.2 is the namespace's own
	// address, on which this registry listens as well.
	proatest.Distribution(t, e.Netns, "192.0.2.2:5446", t.TempDir())
	says(e.Proa("pull", "192.0.2.2:5446/bb"), 1, "does not speak TLS; plain HTTP is used on loopback only")
}

func withTLS(cert, key string) string {
	return fmt.Sprintf("tls: {certificate: %s, key: %s}", cert, key)
}

// trust puts a certificate where the engine looks for authorities of a registry.
func trust(t *testing.T, certs, addr, cert string) {
	t.Helper()
	b, err := os.ReadFile(cert)
	if err == nil {
		err = os.MkdirAll(filepath.Join(certs, addr), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(certs, addr, "ca.crt"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An engine that is killed in the middle of a pull, a push or a load comes up
// with the image whole or not at all, and the same command succeeds.
func TestKilledEngineCarriesImages(t *testing.T) {
	e := proatest.New(t)
	addr := "127.0.0.1:5000"
	proatest.Distribution(t, e.Netns, addr, t.TempDir())
	name := addr + "/big:v1"
	noise := make([]byte, 8<<20)
	_, _ = rand.Read(noise)
	e.Import(name, append(proatest.BusyboxRoot(t), proatest.Entry{Name: "noise", Body: string(noise)}), `CMD ["md5sum", "/noise"]`)
	want := e.MustProa("run", "--rm", "--network", "none", name)
	e.MustProa("push", name)
	archive := filepath.Join(t.TempDir(), "big.tar")
	e.MustProa("save", "-o", archive, name)
	middle := 0
	for n := range 21 {
		args := [][]string{{"pull", name}, {"load", "-i", archive}, {"push", fmt.Sprintf("%s/big-%d:v1", addr, n)}}[n%3]
		if args[0] == "push" {
			e.MustProa("tag", name, args[1])
		} else {
			e.MustProa("rmi", name)
		}
		ended := make(chan proatest.Result, 1)
		go func() { ended <- e.Proa(args...) }()
		time.Sleep(time.Duration(n*8) * time.Millisecond)
		e.Kill()
		if r := <-ended; r.Code != 0 {
			middle++
		}
		e.Start()
		if r := e.Proa(args...); r.Code != 0 {
			t.Fatalf("%v after a kill: %s%s", args, r.Stdout, r.Stderr)
		}
		if got := e.MustProa("run", "--rm", "--network", "none", name); got != want {
			t.Errorf("%v after a kill: the image says %q, want %q", args, got, want)
		}
		if args[0] == "push" {
			e.MustProa("rmi", args[1])
		}
	}
	t.Logf("%d of 21 were killed in their middle", middle)
	if middle < 5 {
		t.Error("the test does not test")
	}
	// All that is gone gives its disk back.
	e.MustProa("rmi", name)
	left, err := filepath.Glob(filepath.Join(e.DataRoot, "image", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left {
		if fi, err := os.Stat(p); err == nil && !fi.IsDir() || strings.HasPrefix(filepath.Base(p), ".new-") {
			t.Errorf("left: %s", p)
		}
	}
	blobs, _ := filepath.Glob(filepath.Join(e.DataRoot, "image", "content", "blobs", "sha256", "*"))
	flats, _ := filepath.Glob(filepath.Join(e.DataRoot, "image", "flat", "*"))
	if len(blobs)+len(flats) != 0 {
		t.Errorf("left: %v %v", blobs, flats)
	}
}
