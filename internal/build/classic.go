package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/platforms"
	clitypes "github.com/docker/cli/cli/config/types"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"proa/internal/build/tarfs"
)

// classic is Docker's POST /build: an archive in, a stream of JSON messages
// out. It is a client of this builder like any other, in the same process.
type classic struct {
	b    *Builder
	self *client.Client
	stop func()

	mu      sync.Mutex
	running map[string]context.CancelFunc // by the client's build id
}

func newClassic(b *Builder) *classic {
	return &classic{b: b, running: map[string]context.CancelFunc{}}
}

// connect makes the way to this process's own control API, once.
func (c *classic) connect(ctx context.Context) (*client.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.self != nil {
		return c.self, nil
	}
	l := bufconn.Listen(1 << 20)
	go func() { _ = c.b.grpc.Serve(l) }()
	self, err := client.New(context.WithoutCancel(ctx), "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		return nil, fmt.Errorf("cannot reach the builder: %w", err)
	}
	c.self = self
	return self, nil
}

// request is a classic build as its query tells it.
type request struct {
	opt     client.SolveOpt
	tags    []string // familiar
	remote  string
	session string
	id      string
	quiet   bool
	v2      bool
	auths   map[string]clitypes.AuthConfig
}

// flagOf reads a boolean of a query as Docker does.
func flagOf(v string) bool {
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// refuseUnsupported refuses by name what this builder does not have.
func refuseUnsupported(q url.Values) error {
	if flagOf(q.Get("squash")) {
		return errors.New("squash is not supported: layers are flat files here, so squashing would save nothing; leave --squash out")
	}
	if q.Get("securityopt") != "" && q.Get("securityopt") != "null" && q.Get("securityopt") != "[]" {
		return errors.New("security options of a build are not supported; leave --security-opt out")
	}
	for _, limit := range []string{"memory", "memswap", "cpushares", "cpuperiod", "cpuquota"} {
		if v := q.Get(limit); v != "" && v != "0" {
			return fmt.Errorf("the limit %s of a build is not supported; leave it out", limit)
		}
	}
	if v := q.Get("cpusetcpus") + q.Get("cpusetmems"); v != "" {
		return errors.New("the limit cpuset of a build is not supported; leave it out")
	}
	if q.Get("cgroupparent") != "" {
		return errors.New("a control group of its own for a build is not supported; leave --cgroup-parent out")
	}
	return nil
}

// ignored are keys of Docker's query that change nothing here: memory and CPU
// limits of the old builder's containers, and whether those are removed.
// squash, security options and Windows' isolation are refused by name.
func readRequest(r *http.Request) (*request, error) {
	q := r.URL.Query()
	on := func(name string) bool { return flagOf(q.Get(name)) }
	if err := refuseUnsupported(q); err != nil {
		return nil, err
	}
	req := &request{quiet: on("q"), remote: q.Get("remote"), session: q.Get("session"), id: q.Get("buildid")}
	switch q.Get("version") {
	case "", "1":
	case "2":
		req.v2 = true
	default:
		return nil, fmt.Errorf("invalid version %q: 1 and 2 are known", q.Get("version"))
	}
	attrs := map[string]string{"image-resolve-mode": pb.AttrImageResolveModePreferLocal}
	req.opt = client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: attrs}
	if v := q.Get("dockerfile"); v != "" && v != "." {
		attrs["filename"] = v
	}
	if v := q.Get("target"); v != "" {
		attrs["target"] = v
	}
	if on("nocache") {
		attrs["no-cache"] = ""
	}
	if on("pull") {
		attrs["image-resolve-mode"] = pb.AttrImageResolveModeForcePull
	}
	if v := q.Get("platform"); v != "" {
		if _, err := platforms.Parse(v); err != nil {
			return nil, fmt.Errorf("invalid platform %q: %w", v, err)
		}
		attrs["platform"] = v
	}
	var args map[string]*string
	var labels map[string]string
	var from []string
	var ulimits []struct {
		Name       string
		Soft, Hard int64
	}
	for name, into := range map[string]any{"buildargs": &args, "labels": &labels, "cachefrom": &from, "ulimits": &ulimits} {
		if v := q.Get(name); v != "" {
			if err := json.Unmarshal([]byte(v), into); err != nil {
				return nil, fmt.Errorf("cannot read %s: %w", name, err)
			}
		}
	}
	for k, v := range args {
		if v != nil {
			attrs["build-arg:"+k] = *v
		}
	}
	for k, v := range labels {
		attrs["label:"+k] = v
	}
	for _, ref := range from {
		req.opt.CacheImports = append(req.opt.CacheImports, client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	if v := args["BUILDKIT_INLINE_CACHE"]; v != nil {
		if yes, err := strconv.ParseBool(*v); err == nil && yes {
			req.opt.CacheExports = append(req.opt.CacheExports, client.CacheOptionsEntry{Type: "inline"})
		}
	}
	var limits []string
	for _, u := range ulimits {
		limits = append(limits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	if len(limits) > 0 {
		attrs["ulimit"] = strings.Join(limits, ",")
	}
	if v := q.Get("shmsize"); v != "" && v != "0" {
		if _, err := strconv.ParseInt(v, 10, 64); err != nil {
			return nil, fmt.Errorf("invalid shmsize %q: must be a number of bytes", v)
		}
		attrs["shm-size"] = v
	}
	var hosts []string
	for _, h := range q["extrahosts"] {
		for _, one := range strings.Split(h, ",") {
			name, ip, _ := strings.Cut(one, ":")
			ip = strings.Trim(ip, "[]")
			if _, err := netip.ParseAddr(ip); name == "" || err != nil && ip != "host-gateway" {
				return nil, fmt.Errorf("invalid extra host %q: must be NAME:ADDRESS", one)
			}
			hosts = append(hosts, name+"="+ip)
		}
	}
	if len(hosts) > 0 {
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	switch v := q.Get("networkmode"); v {
	case "", "default", "bridge":
	case "none":
		attrs["force-network-mode"] = v
	case "host":
		attrs["force-network-mode"] = v
		req.opt.AllowedEntitlements = []string{entitlements.EntitlementNetworkHost.String()}
	default:
		return nil, fmt.Errorf("network mode %q is not supported in a build: default, host and none are", v)
	}
	if err := req.outputs(q); err != nil {
		return nil, err
	}
	if h := r.Header.Get("X-Registry-Config"); h != "" {
		req.auths = readAuths(h)
	}
	return req, nil
}

// readAuths decodes credentials by registry: base64 of any alphabet, padded or
// not. A header that cannot be read is none, as in Docker.
func readAuths(header string) (out map[string]clitypes.AuthConfig) {
	plain := strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimSpace(header)), "=")
	b, err := base64.RawURLEncoding.DecodeString(plain)
	if err != nil || json.Unmarshal(b, &out) != nil {
		return nil
	}
	return out
}

// outputs reads where the result goes: an image, unless outputs says otherwise.
func (req *request) outputs(q url.Values) error {
	var outs []struct {
		Type  string
		Attrs map[string]string
	}
	if v := q.Get("outputs"); v != "" {
		if err := json.Unmarshal([]byte(v), &outs); err != nil {
			return fmt.Errorf("cannot read outputs: %w", err)
		}
	}
	names := q["t"]
	full, err := fullNames(strings.Join(names, ","))
	if err != nil {
		return err
	}
	for _, n := range strings.Split(full, ",") {
		if n != "" {
			req.tags = append(req.tags, n)
		}
	}
	if len(outs) == 0 {
		outs = append(outs, struct {
			Type  string
			Attrs map[string]string
		}{Type: mobyExporter})
	}
	if len(outs) > 1 {
		return errors.New("multiple outputs are not supported")
	}
	o := outs[0]
	switch o.Type {
	case "cacheonly":
		return nil
	case mobyExporter, client.ExporterImage:
		attrs := map[string]string{}
		for k, v := range o.Attrs {
			attrs[k] = v
		}
		attrs[string(exptypes.OptKeyName)] = full
		req.opt.Exports = []client.ExportEntry{{Type: mobyExporter, Attrs: attrs}}
		return nil
	}
	// Anything else is written by the client that holds the session.
	if !req.v2 || req.session == "" {
		return fmt.Errorf("output %q needs a session: use buildx, or docker build with BuildKit", o.Type)
	}
	req.opt.Exports = []client.ExportEntry{{Type: o.Type, Attrs: o.Attrs}}
	return nil
}

// build is POST /build.
func (c *classic) build(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close") // a body that was not read to its end is in no other request's way
	req, err := readRequest(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := fetchable(req.remote); err != nil && req.remote != "client-session" {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if req.id != "" {
		c.mu.Lock()
		c.running[req.id] = cancel
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			delete(c.running, req.id)
			c.mu.Unlock()
		}()
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	s := &stream{w: w, quiet: req.quiet}
	if req.v2 && req.session != "" {
		err = c.solveInSession(ctx, req, r, s)
	} else {
		err = c.solve(ctx, req, r, s)
	}
	if err != nil {
		s.fail(err)
	}
}

// cancel is POST /build/cancel?id=...; an unknown id is no error, as in Docker.
func (c *classic) cancel(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if id == "" {
		fail(w, http.StatusBadRequest, errors.New("build ID not provided"))
		return
	}
	c.mu.Lock()
	cancel := c.running[id]
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	w.WriteHeader(http.StatusOK)
}

// solve builds from the archive in the body, or from a URL.
func (c *classic) solve(ctx context.Context, req *request, r *http.Request, s *stream) error {
	self, err := c.connect(ctx)
	if err != nil {
		return err
	}
	if req.remote != "" {
		req.opt.FrontendAttrs["context"] = req.remote
	} else {
		files, err := c.archive(ctx, r)
		if err != nil {
			return err
		}
		defer files.Close()
		req.opt.LocalMounts, req.opt.SharedKey = map[string]fsutil.FS{"context": files, "dockerfile": files}, files.SharedKey()
	}
	req.opt.Session = []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{AuthConfigProvider: req.auth})}
	status := make(chan *client.SolveStatus)
	var resp *client.SolveResponse
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() (err error) {
		resp, err = self.Solve(ctx, nil, req.opt, status)
		return err
	})
	eg.Go(func() error {
		steps := newSteps(s)
		for st := range status {
			steps.update(st)
		}
		return nil
	})
	if err := eg.Wait(); err != nil {
		return err
	}
	s.done(resp.ExporterResponse[exptypes.ExporterImageConfigDigestKey], req.tags)
	return nil
}

// archive reads the build context from a request's body.
func (c *classic) archive(ctx context.Context, r *http.Request) (*tarfs.FS, error) {
	c.b.boundFiles() // the archive is kept in files
	files, err := tarfs.Read(ctx, r.Body, "")
	if errors.Is(err, syscall.EFBIG) {
		return nil, fmt.Errorf("%w\nhint: %s", err, c.b.fileBound())
	}
	return files, err
}

// offer serves files as the directories of a build, in a session of their own
// beside the client's, until stop is called.
func offer(ctx context.Context, self *client.Client, files *tarfs.FS, attrs map[string]string) (stop func(), err error) {
	own, err := session.NewSession(ctx, files.SharedKey())
	if err != nil {
		return nil, fmt.Errorf("cannot offer the build context: %w", err)
	}
	own.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": files, "dockerfile": files}))
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = own.Run(ctx, grpchijack.Dialer(self.ControlClient())) // a build that misses it says so
	}()
	attrs["local-sessionid:context"], attrs["local-sessionid:dockerfile"] = own.ID(), own.ID()
	return func() {
		cancel()
		_ = own.Close()
		<-ended
	}, nil
}

// auth gives what the client sent for a registry.
func (req *request) auth(_ context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (clitypes.AuthConfig, error) {
	if host == authprovider.DockerHubRegistryHost {
		host = authprovider.DockerHubConfigfileKey
	}
	for _, key := range []string{host, "https://" + host, "http://" + host} {
		if a, ok := req.auths[key]; ok {
			return a, nil
		}
	}
	return clitypes.AuthConfig{}, nil
}

// solveInSession builds for a client that has attached a session and reads
// BuildKit's own messages (docker 18.09 to 22, dockerode). The context is the
// session's where remote says so, and else the body (moby's buildkit builder).
func (c *classic) solveInSession(ctx context.Context, req *request, r *http.Request, s *stream) error {
	self, err := c.connect(ctx)
	if err != nil {
		return err
	}
	attrs := req.opt.FrontendAttrs
	switch req.remote {
	case "client-session":
	case "":
		files, err := c.archive(ctx, r)
		if err != nil {
			return err
		}
		defer files.Close()
		stop, err := offer(ctx, self, files, attrs)
		if err != nil {
			return err
		}
		defer stop()
	default:
		attrs["context"] = req.remote
	}
	solve := &controlapi.SolveRequest{
		Ref: identity.NewID(), Session: req.session, Frontend: req.opt.Frontend, FrontendAttrs: attrs,
		Entitlements: req.opt.AllowedEntitlements, Cache: &controlapi.CacheOptions{},
	}
	for _, e := range req.opt.Exports {
		solve.Exporters = append(solve.Exporters, &controlapi.Exporter{Type: e.Type, Attrs: e.Attrs})
	}
	for _, e := range req.opt.CacheImports {
		solve.Cache.Imports = append(solve.Cache.Imports, &controlapi.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
	}
	for _, e := range req.opt.CacheExports {
		solve.Cache.Exports = append(solve.Cache.Exports, &controlapi.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
	}
	api := self.ControlClient()
	solved := make(chan struct{})
	eg, ectx := errgroup.WithContext(ctx)
	var id string
	eg.Go(func() error {
		defer close(solved)
		resp, err := api.Solve(ectx, solve)
		if err != nil {
			return err
		}
		id = resp.ExporterResponse[exptypes.ExporterImageConfigDigestKey]
		return nil
	})
	eg.Go(func() error {
		// Goes on for a moment after a failed solve, so that the failed step is shown.
		sctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		go func() {
			<-solved
			time.AfterFunc(3*time.Second, stop)
		}()
		st, err := api.Status(sctx, &controlapi.StatusRequest{Ref: solve.Ref})
		if err != nil {
			return nil //nolint:nilerr // the solve says why
		}
		for {
			msg, err := st.Recv()
			if err != nil {
				return nil //nolint:nilerr // its end, or the solve says why
			}
			raw, err := proto.Marshal(msg)
			if err != nil {
				return err
			}
			s.aux("moby.buildkit.trace", raw)
		}
	})
	if err := eg.Wait(); err != nil {
		return err
	}
	if id != "" {
		s.aux("moby.image.id", map[string]string{"ID": id})
	}
	return nil
}
