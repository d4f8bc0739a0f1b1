package command

import (
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/buildkit/client"
	buildctl "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"proa/internal/build/wire"
	proaclient "proa/internal/client"
	"proa/internal/failure"
)

// buildFlags are the flags of `proa build`, docker's names where docker has them.
type buildFlags struct {
	host                                                        string
	file, target, network, progress, iidfile, metadata, shmSize string
	isolation, provenance, sbom                                 string
	tags, args, labels, addHosts, secrets, ssh                  []string
	cacheFrom, cacheTo, outputs, platforms, contexts            []string
	allow, ulimits, noCacheFilter, annotations                  []string
	noCache, pull, quiet, load, push, squash, ignored           bool
}

func (f *buildFlags) add(s *pflag.FlagSet) {
	s.SortFlags = false
	s.StringVarP(&f.host, "host", "H", "", "engine to talk to (default $PROA_HOST, then "+proaclient.DefaultHost+")")
	s.StringArrayVarP(&f.tags, "tag", "t", nil, "name of the image, can be repeated: NAME or NAME:TAG")
	s.StringVarP(&f.file, "file", "f", "", "Dockerfile (default PATH/Dockerfile; - for standard input)")
	s.StringArrayVar(&f.args, "build-arg", nil, "value of an ARG: NAME=VALUE, or NAME to take it from the environment")
	s.StringVar(&f.target, "target", "", "stage to build")
	s.StringVar(&f.isolation, "isolation", "", "wall that RUN steps run behind: container or vm (default: the engine's)")
	s.BoolVar(&f.noCache, "no-cache", false, "run every step again")
	s.StringArrayVar(&f.noCacheFilter, "no-cache-filter", nil, "stage whose steps run again")
	s.BoolVar(&f.pull, "pull", false, "ask the registry for base images that are here already")
	s.StringArrayVar(&f.platforms, "platform", nil, "platform to build for, as linux/amd64")
	s.StringArrayVar(&f.labels, "label", nil, "label of the image: NAME=VALUE")
	s.StringArrayVar(&f.annotations, "annotation", nil, "annotation of the manifest: NAME=VALUE")
	s.StringArrayVar(&f.secrets, "secret", nil, "secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=VARIABLE]")
	s.StringArrayVar(&f.ssh, "ssh", nil, "SSH agent or keys for RUN --mount=type=ssh: default or ID[=SOCKET|KEY[,KEY]]")
	s.StringArrayVar(&f.contexts, "build-context", nil, "one more context: NAME=PATH, NAME=URL or NAME=docker-image://IMAGE")
	s.StringArrayVar(&f.cacheFrom, "cache-from", nil, "cache to use: IMAGE, type=registry,ref=IMAGE or type=local,src=DIR")
	s.StringArrayVar(&f.cacheTo, "cache-to", nil, "where the cache goes: type=inline, type=registry,ref=IMAGE or type=local,dest=DIR, each with mode=max for all steps")
	s.StringArrayVarP(&f.outputs, "output", "o", nil, "where the result goes: DIR, - for a tar, or type=image|oci|docker|tar|local[,dest=PATH] (default type=image)")
	s.BoolVar(&f.load, "load", false, "the same as --output type=image, which is the default")
	s.BoolVar(&f.push, "push", false, "push the image when it is built")
	s.StringVar(&f.iidfile, "iidfile", "", "file to write the image's id to")
	s.StringVar(&f.metadata, "metadata-file", "", "file to write what came out to, as JSON")
	s.StringVar(&f.progress, "progress", "auto", "auto, plain, tty, quiet or rawjson")
	s.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's id alone")
	s.StringVar(&f.network, "network", "", "network of RUN steps: default, none or host")
	s.StringArrayVar(&f.addHosts, "add-host", nil, "line of /etc/hosts in RUN steps: NAME:ADDRESS")
	s.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm in RUN steps, as 64m")
	s.StringArrayVar(&f.ulimits, "ulimit", nil, "limit in RUN steps: NAME=SOFT[:HARD]")
	s.StringArrayVar(&f.allow, "allow", nil, "what RUN steps may ask for: network.host, security.insecure")
	s.StringVar(&f.provenance, "provenance", "", "attach a record of how it was built: true or mode=min|max (default: none)")
	s.StringVar(&f.sbom, "sbom", "", "attach a list of what is in it: true or generator=IMAGE (default: none)")
	s.BoolVar(&f.squash, "squash", false, "")
	for _, name := range []string{"rm", "force-rm", "compress", "disable-content-trust"} {
		s.BoolVar(&f.ignored, name, false, "")
		_ = s.MarkHidden(name)
	}
	_ = s.MarkHidden("squash")
	s.Lookup("provenance").NoOptDefVal, s.Lookup("sbom").NoOptDefVal = "true", "true"
}

// engine is the address to talk to.
func (f *buildFlags) engine() string {
	if f.host != "" {
		return f.host
	}
	if h := os.Getenv("PROA_HOST"); h != "" {
		return h
	}
	return proaclient.DefaultHost
}

// pairs adds NAME=VALUE lists to attrs with a prefix.
func pairs(attrs map[string]string, prefix, flag string, list []string) error {
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" || !ok {
			return failure.Hint(fmt.Errorf("invalid %s %q", flag, kv), flag+" NAME=VALUE")
		}
		attrs[prefix+k] = v
	}
	return nil
}

// solveOpt makes BuildKit's request of the flags.
func (f *buildFlags) solveOpt(src *source, c *cork) (*client.SolveOpt, error) {
	if f.squash {
		return nil, failure.Hint(errors.New("--squash is not supported"), "layers are flat files here, so squashing saves nothing; leave it out")
	}
	switch f.isolation {
	case "", "default", "container", "vm":
	default:
		return nil, failure.Hint(fmt.Errorf("unknown isolation %q", f.isolation), "container and vm are known")
	}
	attrs := map[string]string{"image-resolve-mode": pb.AttrImageResolveModePreferLocal}
	sent, err := files(src.mounts, c)
	if err != nil {
		return nil, err
	}
	opt := &client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, SharedKey: src.key, Session: []session.Attachable{sent},
		Internal: true, // Proa keeps no history of builds, and making its records takes a fifth of a build that has nothing to do
	}
	for k, v := range src.attrs {
		attrs[k] = v
	}
	for _, kv := range f.args {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" {
			return nil, failure.Hint(fmt.Errorf("invalid --build-arg %q", kv), "--build-arg NAME=VALUE")
		}
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue // as docker: it keeps the Dockerfile's default
			}
		}
		attrs["build-arg:"+k] = v
		if on, err := strconv.ParseBool(v); k == "BUILDKIT_INLINE_CACHE" && err == nil && on {
			opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry{Type: "inline"})
		}
	}
	for _, kv := range f.labels {
		k, v, _ := strings.Cut(kv, "=") // a name alone has an empty value, as in docker
		if k == "" {
			return nil, failure.Hint(fmt.Errorf("invalid --label %q", kv), "--label NAME=VALUE")
		}
		attrs["label:"+k] = v
	}
	if f.target != "" {
		attrs["target"] = f.target
	}
	if f.noCache {
		attrs["no-cache"] = ""
	} else if len(f.noCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(f.noCacheFilter, ",")
	}
	if f.pull {
		attrs["image-resolve-mode"] = pb.AttrImageResolveModeForcePull
	}
	if list := split(f.platforms); len(list) > 0 {
		for _, p := range list {
			if _, err := platforms.Parse(p); err != nil {
				return nil, failure.Hint(fmt.Errorf("invalid --platform %q: it is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT", p), "--platform linux/amd64")
			}
		}
		attrs["platform"] = strings.Join(list, ",")
	}
	switch f.network {
	case "", "default", "bridge":
	case "none":
		attrs["force-network-mode"] = "none"
	case "host":
		attrs["force-network-mode"] = "host"
		opt.AllowedEntitlements = append(opt.AllowedEntitlements, entitlements.EntitlementNetworkHost.String())
	default:
		return nil, failure.Hint(fmt.Errorf("network %q is not supported in a build", f.network), "default, none and host are")
	}
	for _, e := range f.allow {
		if _, _, err := entitlements.Parse(e); err != nil {
			return nil, failure.Hint(fmt.Errorf("invalid --allow %q: %w", e, err), "network.host and security.insecure are known")
		}
		opt.AllowedEntitlements = append(opt.AllowedEntitlements, e)
	}
	if f.shmSize != "" {
		n, err := units.RAMInBytes(f.shmSize)
		if err != nil {
			return nil, failure.Hint(fmt.Errorf("invalid --shm-size %q: %w", f.shmSize, err), "--shm-size 64m")
		}
		attrs["shm-size"] = strconv.FormatInt(n, 10)
	}
	var limits []string
	for _, l := range f.ulimits {
		u, err := units.ParseUlimit(l)
		if err != nil {
			return nil, failure.Hint(fmt.Errorf("invalid --ulimit %q: %w", l, err), "--ulimit nofile=1024:2048")
		}
		limits = append(limits, u.String())
	}
	if len(limits) > 0 {
		attrs["ulimit"] = strings.Join(limits, ",")
	}
	for name, v := range map[string]string{"provenance": f.provenance, "sbom": f.sbom} {
		switch v {
		case "", "false", "0":
		case "true", "1":
			attrs["attest:"+name] = ""
		default:
			attrs["attest:"+name] = v
		}
	}
	if opt.CacheImports, err = caches(f.cacheFrom, "--cache-from", ""); err != nil {
		return nil, err
	}
	exports, err := caches(f.cacheTo, "--cache-to", "min")
	if err != nil {
		return nil, err
	}
	opt.CacheExports = append(opt.CacheExports, exports...)
	opt.Exports, err = f.exports()
	return opt, err
}

// split takes comma separated values of a flag that can be repeated apart.
func split(list []string) (out []string) {
	for _, v := range list {
		for _, one := range strings.Split(v, ",") {
			if one = strings.TrimSpace(one); one != "" {
				out = append(out, one)
			}
		}
	}
	return out
}

// fields reads "key=value,key=value" with quotes as in a CSV line.
func fields(v string) (map[string]string, error) {
	r := csv.NewReader(strings.NewReader(v))
	row, err := r.Read()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, f := range row {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not of the form key=value", f)
		}
		out[strings.ToLower(strings.TrimSpace(k))] = v
	}
	return out, nil
}

// caches reads --cache-from and --cache-to; a bare name is an image.
func caches(list []string, flag, mode string) (out []client.CacheOptionsEntry, err error) {
	for _, v := range list {
		attrs := map[string]string{"type": "registry", "ref": v}
		if strings.Contains(v, "=") {
			if attrs, err = fields(v); err != nil {
				return nil, fmt.Errorf("invalid %s %q: %w", flag, v, err)
			}
		}
		e := client.CacheOptionsEntry{Type: attrs["type"], Attrs: attrs}
		delete(attrs, "type")
		switch e.Type {
		case "registry", "local":
		case "inline":
			if mode == "" {
				return nil, failure.Hint(fmt.Errorf("invalid %s %q", flag, v), "an inline cache is part of an image: --cache-from IMAGE")
			}
		default:
			return nil, failure.Hint(fmt.Errorf("invalid %s %q: unknown type %q", flag, v, e.Type), "registry, local and inline are known")
		}
		if mode != "" && attrs["mode"] == "" {
			attrs["mode"] = mode
		}
		out = append(out, e)
	}
	return out, nil
}

// exports reads where the result goes.
func (f *buildFlags) exports() ([]client.ExportEntry, error) {
	image := func() client.ExportEntry {
		return client.ExportEntry{Type: client.ExporterImage, Attrs: map[string]string{}}
	}
	var out []client.ExportEntry
	for _, v := range f.outputs {
		attrs := map[string]string{}
		var err error
		switch {
		case v == "-":
			attrs["type"], attrs["dest"] = client.ExporterTar, "-"
		case !strings.Contains(v, "="):
			attrs["type"], attrs["dest"] = client.ExporterLocal, v
		default:
			if attrs, err = fields(v); err != nil {
				return nil, fmt.Errorf("invalid --output %q: %w", v, err)
			}
		}
		e := client.ExportEntry{Type: attrs["type"], Attrs: attrs}
		dest := attrs["dest"]
		delete(attrs, "type")
		delete(attrs, "dest")
		switch e.Type {
		case "cacheonly":
			continue
		case client.ExporterImage, "registry":
			if e.Type == "registry" {
				e.Type, attrs["push"] = client.ExporterImage, "true"
			}
			if dest != "" {
				return nil, failure.Hint(fmt.Errorf("invalid --output %q: an image has no file", v), "--output type=oci,dest=FILE writes one")
			}
		case client.ExporterLocal:
			if dest == "" || dest == "-" {
				return nil, failure.Hint(fmt.Errorf("invalid --output %q: the directory is missing", v), "--output type=local,dest=DIR")
			}
			e.OutputDir = dest
		case client.ExporterTar, client.ExporterOCI, client.ExporterDocker:
			if e.Type == client.ExporterDocker && dest == "" {
				e = image() // docker's word for loading it
				break
			}
			if dest == "" && e.Type != client.ExporterTar {
				return nil, failure.Hint(fmt.Errorf("invalid --output %q: the file is missing", v), "--output type="+e.Type+",dest=FILE")
			}
			if (dest == "-" || dest == "") && term.IsTerminal(int(os.Stdout.Fd())) {
				return nil, failure.Hint(errors.New("an archive is not written to a terminal"), "redirect it, or --output type="+e.Type+",dest=FILE")
			}
			e.Output = func(map[string]string) (io.WriteCloser, error) {
				if dest == "-" || dest == "" {
					return nopCloser{os.Stdout}, nil
				}
				return os.Create(dest)
			}
		default:
			return nil, failure.Hint(fmt.Errorf("invalid --output %q: unknown type %q", v, e.Type), "image, oci, docker, tar, local and cacheonly are known")
		}
		out = append(out, e)
	}
	if len(f.outputs) == 0 {
		out = append(out, image())
	} else if f.load {
		out = append(out, image())
	}
	named := false
	for _, e := range out {
		switch e.Type {
		case client.ExporterImage, client.ExporterOCI, client.ExporterDocker:
			for _, tag := range f.tags {
				if _, err := reference.ParseNormalizedNamed(tag); err != nil {
					return nil, failure.Hint(fmt.Errorf("invalid --tag %q: %w", tag, err), "a name looks like app, app:v1 or registry:5000/team/app:v1")
				}
			}
			if len(f.tags) > 0 {
				e.Attrs[string(exptypes.OptKeyName)] = strings.Join(f.tags, ",")
			}
			if err := pairs(e.Attrs, "annotation.", "--annotation", f.annotations); err != nil {
				return nil, err
			}
		}
		if e.Type == client.ExporterImage {
			if f.push {
				e.Attrs[string(exptypes.OptKeyPush)] = "true"
			}
			named = true
			if e.Attrs[string(exptypes.OptKeyPush)] == "true" && e.Attrs[string(exptypes.OptKeyName)] == "" {
				return nil, failure.Hint(errors.New("an image without a name cannot be pushed"), "-t REGISTRY/NAME:TAG")
			}
		}
	}
	if f.push && !named {
		return nil, failure.Hint(errors.New("--push needs an image, and --output makes none"), "--output type=image as well")
	}
	return out, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// attachables are what the builder may ask this process for.
func (f *buildFlags) attachables(a *app) ([]session.Attachable, error) {
	out := []session.Attachable{a.credentials()}
	if len(f.ssh) > 0 {
		conf, err := buildctl.ParseSSH(f.ssh)
		if err != nil {
			return nil, fmt.Errorf("invalid --ssh: %w", err)
		}
		p, err := sshprovider.NewSSHAgentProvider(conf)
		if err != nil {
			return nil, failure.Hint(fmt.Errorf("cannot forward --ssh: %w", err), "an agent needs $SSH_AUTH_SOCK; a key is given as --ssh default=FILE")
		}
		out = append(out, p)
	}
	if len(f.secrets) > 0 {
		p, err := buildctl.ParseSecret(f.secrets)
		if err != nil {
			return nil, failure.Hint(fmt.Errorf("cannot use --secret: %w", err), "--secret id=NAME,src=FILE or --secret id=NAME,env=VARIABLE")
		}
		out = append(out, p)
	}
	return out, nil
}

// hosts adds lines for /etc/hosts; host-gateway is the engine's own address
// as RUN steps see it, which the builder tells.
func (f *buildFlags) hosts(ctx context.Context, c *client.Client, opt *client.SolveOpt) error {
	var lines []string
	for _, h := range f.addHosts {
		name, addr, ok := strings.Cut(h, "=")
		if !ok {
			name, addr, ok = strings.Cut(h, ":")
		}
		if !ok || name == "" || addr == "" {
			return failure.Hint(fmt.Errorf("invalid --add-host %q", h), "--add-host NAME:ADDRESS")
		}
		if addr == "host-gateway" {
			workers, err := c.ListWorkers(ctx)
			if err != nil {
				return fmt.Errorf("cannot ask the builder for its gateway: %w", err)
			}
			addr = ""
			for _, w := range workers {
				addr = w.Labels[wire.GatewayLabel]
			}
			if addr == "" {
				return failure.Hint(errors.New("the engine has no gateway for host-gateway"), "give the address: --add-host "+name+":ADDRESS")
			}
		}
		lines = append(lines, name+"="+strings.Trim(addr, "[]"))
	}
	if len(lines) > 0 {
		opt.FrontendAttrs["add-hosts"] = strings.Join(lines, ",")
	}
	return nil
}

// contextKey names a context over several builds, so that only what changed
// is sent again.
func contextKey(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	host, _ := os.Hostname()
	sum := sha256.Sum256([]byte(host + "\x00" + strconv.Itoa(os.Getuid()) + "\x00" + abs))
	return filepath.Base(abs) + ":" + hex.EncodeToString(sum[:8])
}
