package registry

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"proa/internal/failure"
	"proa/internal/registry/store"
	"proa/internal/sys"
	"proa/internal/version"
)

const (
	defaultRoot = "/var/lib/proa/registry"
	defaultAddr = "127.0.0.1:5000"

	// headerLimit is how long a client may take for a request's header, and
	// for the handshake before it.
	headerLimit = 15 * time.Second
	idleLimit   = 2 * time.Minute
	// drainLimit is how long requests may take to end once the registry is
	// asked to stop. An upload that is cut by it can be resumed.
	drainLimit = 10 * time.Second
	// collectEvery is how often garbage is collected.
	collectEvery = time.Hour
)

// Main is the program proa-registry. It returns the exit code.
func Main(args []string) int {
	syscall.Umask(0o077)
	root := &cobra.Command{
		Use: "registry", Short: "A registry in the box: push to it, pull from it, no account needed",
		SilenceErrors: true, SilenceUsage: true, Version: version.Version,
		// People start it as a command of proa.
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "proa registry"},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return failure.Hint(err, cmd.CommandPath()+" --help lists the flags")
	})
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return failure.Hint(fmt.Errorf("unknown command %q", args[0]), "proa registry --help lists the commands")
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.AddCommand(serveCmd(), gcCmd(), checkCmd(), htpasswdCmd())
	root.SetArgs(args[1:])
	return failure.Report(os.Stderr, "proa registry", root.Execute())
}

// takes is the number of arguments that a command needs.
func takes(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return failure.Hint(fmt.Errorf("%s takes %d arguments, and %d were given", cmd.Name(), n, len(args)), cmd.UseLine())
	}
}

// serveFlags are the flags of serve.
type serveFlags struct {
	addr, root         string
	cert, key          string
	selfSigned         bool
	names              []string
	htpasswd           string
	insecure           bool
	allowDelete        bool
	maxBlob            string
	maxUploads         int
	expiry, keepUnused time.Duration
	logLevel           string
	verbose            bool
}

func serveCmd() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve a registry until SIGTERM or Ctrl-C", Args: takes(0),
		Long: `Serve a registry (OCI distribution specification 1.1) until SIGTERM or Ctrl-C.

Without TLS it listens on loopback only. Garbage is collected at start, every
hour, and a minute after something was deleted.`,
		Example: `  proa registry serve
  proa push localhost:5000/demo

  proa registry htpasswd anna >>/etc/proa/htpasswd
  proa registry serve --addr :5000 --tls-self-signed --htpasswd /etc/proa/htpasswd`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends it at once
			return serve(ctx, f)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.addr, "addr", defaultAddr, "address to listen on, as 127.0.0.1:5000 or :5000")
	fl.StringVar(&f.root, "root", defaultRoot, "directory of everything that is pushed")
	fl.StringVar(&f.cert, "tls-cert", "", "file with the certificate, and those between it and its authority")
	fl.StringVar(&f.key, "tls-key", "", "file with the certificate's key")
	fl.BoolVar(&f.selfSigned, "tls-self-signed", false, "make a certificate authority below the root, and certificates from it")
	fl.StringArrayVar(&f.names, "name", nil, "further name under which clients reach the registry, can be repeated")
	fl.StringVar(&f.htpasswd, "htpasswd", "", "file with users and bcrypt hashes; without it everybody who reaches the registry may pull and push")
	fl.BoolVar(&f.insecure, "insecure", false, "allow plain HTTP beyond loopback: everybody between can read and change everything")
	fl.BoolVar(&f.allowDelete, "allow-delete", false, "let clients delete tags, manifests and blobs")
	fl.StringVar(&f.maxBlob, "max-blob", "64g", "most bytes of one blob")
	fl.IntVar(&f.maxUploads, "max-uploads", 64, "most blobs that are received at once")
	fl.DurationVar(&f.expiry, "upload-expiry", time.Hour, "how long an upload may be idle")
	fl.DurationVar(&f.keepUnused, "keep-unused", time.Hour, "how long a blob stays that no manifest names")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error; debug has a line for each request")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "the same as --log-level debug")
	return cmd
}

func serve(ctx context.Context, f serveFlags) (err error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: use debug, info, warn or error", f.logLevel)
	}
	if f.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	maxBlob, err := units.RAMInBytes(f.maxBlob)
	if err != nil || maxBlob <= 0 {
		return fmt.Errorf("--max-blob %q: use a size, as 512m or 64g", f.maxBlob)
	}
	if f.maxUploads < 1 || f.expiry <= 0 || f.keepUnused <= 0 {
		return errors.New("--max-uploads, --upload-expiry and --keep-unused must be greater than zero")
	}
	host, addr, err := f.resolve()
	if err != nil {
		return err
	}
	var passwords *Passwords
	if f.htpasswd != "" {
		if passwords, err = OpenPasswords(f.htpasswd, log); errors.Is(err, os.ErrNotExist) {
			return failure.Hint(err, "proa registry htpasswd NAME >>"+f.htpasswd)
		} else if err != nil {
			return err
		}
	}
	st, err := store.Open(f.root, store.Config{MaxBlob: maxBlob, UploadExpiry: f.expiry, KeepUnused: f.keepUnused})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()

	names := ownNames(host, addr.IP, f.names)
	cfg := Config{Store: st, Auth: passwords, AllowDelete: f.allowDelete, MaxReceive: f.maxUploads, Log: log}
	security, ca, err := f.tls(names, log)
	if err != nil {
		return err
	}
	if security == nil && !f.insecure {
		cfg.OwnName = func(host string) bool { return means(names, host) }
	}
	listener, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return cannotListen(addr, err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	g := New(cfg)
	srv := &http.Server{
		Handler: g, TLSConfig: security, ReadHeaderTimeout: headerLimit, IdleTimeout: idleLimit, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	background, cancel := context.WithCancel(context.Background())
	collected := make(chan struct{})
	go func() { defer close(collected); g.Collect(background, collectEvery) }()
	defer func() { cancel(); <-collected }()

	log.Info("registry is ready", "version", version.Version, "addr", listener.Addr(), "tls", f.tlsWord(), "auth", authWord(f.htpasswd), "delete", f.allowDelete, "root", f.root)
	if security == nil && f.insecure && !addr.IP.IsLoopback() {
		log.Warn("plain HTTP beyond loopback: everybody between here and a client can read and change what is pushed, and read passwords")
	}
	if ca != nil {
		at := net.JoinHostPort(names[0], strconv.Itoa(port))
		log.Info("clients must be given the certificate of this registry's own authority", "file", ca.file, "fingerprint", ca.fingerprint(),
			"there", "install -D -m 644 ca.crt /etc/docker/certs.d/"+at+"/ca.crt")
	}
	sys.Notify("READY=1")
	ended := make(chan error, 1)
	go func() {
		if security != nil {
			ended <- srv.ServeTLS(listener, "", "")
			return
		}
		ended <- srv.Serve(listener)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("cannot serve: %w", err)
	case <-ctx.Done():
	}
	sys.Notify("STOPPING=1")
	log.Info("registry stops")
	limit, done := context.WithTimeout(context.Background(), drainLimit)
	defer done()
	if err := srv.Shutdown(limit); err != nil {
		log.Warn("some requests were cut; uploads among them can be resumed")
		return srv.Close()
	}
	return nil
}

// cannotListen says why nothing can listen at addr, and where something could.
func cannotListen(addr *net.TCPAddr, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = fmt.Sprintf("choose another port with --addr; ss -ltnp 'sport = :%d' shows who has this one", addr.Port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "ip -brief address lists the addresses of this host"
	case errors.Is(err, os.ErrPermission):
		hint = "ports below 1024 are root's: choose another with --addr"
	}
	return failure.Hint(fmt.Errorf("cannot listen at %s: %w", addr, err), hint)
}

// resolve finds the address to listen on and refuses what would give
// everything away: plain HTTP where others can listen in.
func (f *serveFlags) resolve() (host string, addr *net.TCPAddr, err error) {
	if (f.cert == "") != (f.key == "") {
		return "", nil, errors.New("--tls-cert and --tls-key belong together")
	}
	if f.cert != "" && f.selfSigned {
		return "", nil, errors.New("--tls-self-signed makes a certificate and --tls-cert brings one: use either")
	}
	host, _, err = net.SplitHostPort(f.addr)
	if err != nil {
		return "", nil, fmt.Errorf("--addr %q: use an address and a port, as 127.0.0.1:5000 or :5000", f.addr)
	}
	if addr, err = net.ResolveTCPAddr("tcp", f.addr); err != nil {
		return "", nil, fmt.Errorf("--addr %q: %w", f.addr, err)
	}
	if addr.IP == nil {
		addr.IP = net.IPv6unspecified
	}
	plain := f.cert == "" && !f.selfSigned
	if !plain || f.insecure || addr.IP.IsLoopback() {
		return host, addr, nil
	}
	what := "everybody between here and a client could read and change what is pushed"
	if f.htpasswd != "" {
		what = "passwords would cross the network as plain text"
	}
	return "", nil, fmt.Errorf("--addr %s is reached from other hosts, and %s: add --tls-self-signed, or --tls-cert and --tls-key (or --insecure, if you know better)", f.addr, what)
}

// tls makes the configuration of TLS: nil for plain HTTP.
func (f *serveFlags) tls(names []string, log *slog.Logger) (c *tls.Config, ca *authority, err error) {
	c = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	switch {
	case f.cert != "":
		c.GetCertificate, err = serveFiles(f.cert, f.key, log)
	case f.selfSigned:
		if ca, err = openAuthority(filepath.Join(f.root, "tls")); err == nil {
			c.GetCertificate = ca.serve(names, log)
		}
	default:
		return nil, nil, nil
	}
	return c, ca, err
}

func (f *serveFlags) tlsWord() string {
	switch {
	case f.cert != "":
		return f.cert
	case f.selfSigned:
		return "self-signed"
	}
	return "off"
}

func authWord(file string) string {
	if file == "" {
		return "off"
	}
	return file
}

// means says whether a Host header names this registry.
func means(names []string, host string) bool {
	if host == "" {
		return true // HTTP/1.0, which no browser speaks
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), "."))
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) })
}

func rootFlag(cmd *cobra.Command, root *string) {
	cmd.Flags().StringVar(root, "root", defaultRoot, "directory of everything that was pushed")
}

// existing refuses a root that nobody has ever served from: a typing error
// must not make an empty registry.
func existing(root string) error {
	if _, err := os.Stat(filepath.Join(root, "index.db")); err != nil {
		return fmt.Errorf("there is no registry in %q (--root): %w", root, err)
	}
	return nil
}

func gcCmd() *cobra.Command {
	var root string
	var untagged bool
	var keep time.Duration
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove blobs that no manifest names, from a registry that is not being served", Args: takes(0),
		Long: `Remove blobs that no manifest names, from a registry that is not being served.

One that is served does so by itself: at start, every hour, and a minute after
something was deleted. Only --untagged is never done by itself.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := existing(root); err != nil {
				return err
			}
			s, err := store.Open(root, store.Config{KeepUnused: max(keep, 1), UploadExpiry: max(keep, 1)})
			if err != nil {
				return err
			}
			c, err := s.Collect(cmd.Context(), untagged)
			fmt.Printf("removed %d manifests, %d blobs (%s), %d uploads\n", c.Manifests, c.Blobs, units.HumanSize(float64(c.Bytes)), c.Uploads)
			return errors.Join(err, s.Close())
		},
	}
	rootFlag(cmd, &root)
	cmd.Flags().BoolVar(&untagged, "untagged", false, "first remove manifests that no tag leads to")
	cmd.Flags().DurationVar(&keep, "keep", 0, "leave what was pushed within this time, and uploads that were written to within it")
	return cmd
}

func checkCmd() *cobra.Command {
	var root string
	var repair bool
	cmd := &cobra.Command{
		Use: "check", Short: "Read everything and compare it with its digests, in a registry that is not being served", Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := existing(root); err != nil {
				return err
			}
			s, err := store.Open(root, store.Config{})
			if err != nil {
				return err
			}
			defer s.Close()
			blobs, bytes, faults, err := s.Verify(repair)
			if err != nil {
				return err
			}
			for _, f := range faults {
				fmt.Println(f)
			}
			if len(faults) > 0 {
				what := "`proa registry check --repair` removes broken blobs, and pushing the same images brings them back"
				if repair {
					what = "what was broken is removed: pushing the same images brings it back"
				}
				return fmt.Errorf("%d faults; %s", len(faults), what)
			}
			fmt.Printf("%d blobs, %s: all is well\n", blobs, units.HumanSize(float64(bytes)))
			return nil
		},
	}
	rootFlag(cmd, &root)
	cmd.Flags().BoolVar(&repair, "repair", false, "remove blobs whose content is wrong")
	return cmd
}

func htpasswdCmd() *cobra.Command {
	return &cobra.Command{
		Use: "htpasswd USER", Short: "Print a user's line for the file of serve --htpasswd; the password comes from standard input", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, err := readPassword(os.Stdin, os.Stderr)
			if err != nil {
				return err
			}
			line, err := PasswordLine(args[0], password)
			if err != nil {
				return err
			}
			fmt.Println(line)
			return nil
		},
	}
}

// readPassword asks twice on a terminal, and takes the first line elsewhere.
func readPassword(in *os.File, ask io.Writer) (string, error) {
	fd := int(in.Fd())
	if !term.IsTerminal(fd) {
		line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("cannot read the password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	var given [2]string
	for i, prompt := range []string{"Password: ", "Again: "} {
		fmt.Fprint(ask, prompt)
		raw, err := term.ReadPassword(fd)
		fmt.Fprintln(ask)
		if err != nil {
			return "", fmt.Errorf("cannot read the password: %w", err)
		}
		given[i] = string(raw)
	}
	if given[0] != given[1] {
		return "", errors.New("the two passwords differ")
	}
	return given[0], nil
}
