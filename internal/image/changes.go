package image

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"proa/internal/image/remote/pick"
)

// changeVerbs are the instructions of a Dockerfile that change a config alone,
// as Docker's commit and import take them.
var changeVerbs = map[string]func(*dockerspec.DockerOCIImageConfig, string) error{
	"CMD":         changeCmd,
	"ENTRYPOINT":  changeEntrypoint,
	"ENV":         changeEnv,
	"EXPOSE":      changeExpose,
	"HEALTHCHECK": changeHealthcheck,
	"LABEL":       changeLabel,
	"ONBUILD":     changeOnbuild,
	"SHELL":       changeShell,
	"STOPSIGNAL":  changeStopsignal,
	"USER":        changeUser,
	"VOLUME":      changeVolume,
	"WORKDIR":     changeWorkdir,
}

// applyChanges carries out lines of a Dockerfile on a config: CMD,
// ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL,
// USER, VOLUME, WORKDIR. One change may hold several lines; a backslash at
// the end of a line joins it with the next. The error quotes the bad line and
// is errdefs.ErrInvalidArgument.
func applyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	for _, change := range changes {
		for _, line := range logicalLines(change) {
			verb, rest, _ := strings.Cut(line, " ")
			if i := strings.IndexAny(line, " \t"); i >= 0 {
				verb, rest = line[:i], strings.TrimSpace(line[i:])
			}
			apply, ok := changeVerbs[strings.ToUpper(verb)]
			if !ok {
				return fmt.Errorf("change %q: %q is not an instruction that changes a config (%s are): %w", line, verb, pick.List(verbs()), errdefs.ErrInvalidArgument)
			}
			if rest == "" {
				return fmt.Errorf("change %q: %s needs an argument: %w", line, strings.ToUpper(verb), errdefs.ErrInvalidArgument)
			}
			if err := apply(c, rest); err != nil {
				return fmt.Errorf("change %q: %w: %w", line, err, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

func verbs() []string {
	var out []string
	for v := range changeVerbs {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// logicalLines joins continued lines and drops empty ones and comments.
func logicalLines(change string) []string {
	var out []string
	var open string
	for _, l := range strings.Split(strings.ReplaceAll(change, "\r\n", "\n"), "\n") {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "#") {
			continue
		}
		if rest, more := strings.CutSuffix(l, "\\"); more {
			open += rest
			continue
		}
		if l = strings.TrimSpace(open + l); l != "" {
			out = append(out, l)
		}
		open = ""
	}
	if open = strings.TrimSpace(open); open != "" {
		out = append(out, open)
	}
	return out
}

// jsonWords reads the JSON form of an argument: an array of strings.
func jsonWords(rest string) ([]string, bool) {
	if !strings.HasPrefix(rest, "[") {
		return nil, false
	}
	var words []string
	if json.Unmarshal([]byte(rest), &words) != nil {
		return nil, false // Docker, too, takes "[ -f x ] && y" for a shell line
	}
	return words, true
}

// command is what CMD and ENTRYPOINT run: the JSON form as it is, any other
// through the shell.
func command(c *dockerspec.DockerOCIImageConfig, rest string) []string {
	if words, ok := jsonWords(rest); ok {
		return words
	}
	shell := c.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), rest)
}

func changeCmd(c *dockerspec.DockerOCIImageConfig, rest string) error {
	c.Cmd = command(c, rest)
	return nil
}

func changeEntrypoint(c *dockerspec.DockerOCIImageConfig, rest string) error {
	c.Entrypoint = command(c, rest)
	return nil
}

func changeShell(c *dockerspec.DockerOCIImageConfig, rest string) error {
	words, ok := jsonWords(rest)
	if !ok || len(words) == 0 {
		return fmt.Errorf("SHELL needs the JSON form: [\"program\", \"argument\"]")
	}
	c.Shell = words
	return nil
}

func changeEnv(c *dockerspec.DockerOCIImageConfig, rest string) error {
	pairs, err := pairs("ENV", rest, c.Env)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		i := slices.IndexFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, p.key+"=") })
		if i < 0 {
			c.Env = append(c.Env, p.key+"="+p.value)
		} else {
			c.Env[i] = p.key + "=" + p.value
		}
	}
	return nil
}

func changeLabel(c *dockerspec.DockerOCIImageConfig, rest string) error {
	pairs, err := pairs("LABEL", rest, c.Env)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[p.key] = p.value
	}
	return nil
}

func changeExpose(c *dockerspec.DockerOCIImageConfig, rest string) error {
	words, err := expandAll(rest, c.Env)
	if err != nil {
		return err
	}
	for _, w := range words {
		ports, proto, ok := strings.Cut(w, "/")
		if !ok {
			proto = "tcp"
		}
		proto = strings.ToLower(proto)
		if proto != "tcp" && proto != "udp" && proto != "sctp" {
			return fmt.Errorf("port %q: the protocol must be tcp, udp or sctp", w)
		}
		first, last, ranged := strings.Cut(ports, "-")
		if !ranged {
			last = first
		}
		lo, err1 := strconv.ParseUint(first, 10, 16)
		hi, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || lo == 0 || hi < lo {
			return fmt.Errorf("port %q is neither a port from 1 to 65535 nor a range of them", w)
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for p := lo; p <= hi; p++ {
			c.ExposedPorts[fmt.Sprintf("%d/%s", p, proto)] = struct{}{}
		}
	}
	return nil
}

func changeVolume(c *dockerspec.DockerOCIImageConfig, rest string) error {
	words, ok := jsonWords(rest)
	if !ok {
		var err error
		if words, err = expandAll(rest, c.Env); err != nil {
			return err
		}
	}
	if len(words) == 0 {
		return fmt.Errorf("VOLUME needs a path")
	}
	for _, w := range words {
		if w = strings.TrimSpace(w); w == "" {
			return fmt.Errorf("VOLUME has an empty path")
		}
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[w] = struct{}{}
	}
	return nil
}

func changeWorkdir(c *dockerspec.DockerOCIImageConfig, rest string) error {
	w, err := expand(rest, c.Env)
	if err != nil {
		return err
	}
	if !path.IsAbs(w) {
		w = path.Join("/", c.WorkingDir, w)
	}
	c.WorkingDir = path.Clean(w)
	return nil
}

// one reads the argument of an instruction that takes a single word.
func one(verb, rest string, env []string) (string, error) {
	words, err := expandAll(rest, env)
	if err != nil {
		return "", err
	}
	if len(words) != 1 {
		return "", fmt.Errorf("%s needs exactly one argument", verb)
	}
	return words[0], nil
}

func changeUser(c *dockerspec.DockerOCIImageConfig, rest string) (err error) {
	c.User, err = one("USER", rest, c.Env)
	return err
}

func changeStopsignal(c *dockerspec.DockerOCIImageConfig, rest string) error {
	sig, err := one("STOPSIGNAL", rest, c.Env)
	if err != nil {
		return err
	}
	if !validSignal(sig) {
		return fmt.Errorf("%q is no signal", sig)
	}
	c.StopSignal = sig
	return nil
}

// signals are Linux's names of signals, without SIG.
var signals = strings.Fields(`ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT
	STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX`)

func validSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for _, base := range []string{"RTMIN+", "RTMAX-"} {
		if off, ok := strings.CutPrefix(name, base); ok {
			n, err := strconv.Atoi(off)
			return err == nil && n >= 0 && n <= 30
		}
	}
	return slices.Contains(signals, name)
}

func changeOnbuild(c *dockerspec.DockerOCIImageConfig, rest string) error {
	verb := strings.ToUpper(strings.Fields(rest)[0])
	switch verb {
	case "ONBUILD":
		return fmt.Errorf("ONBUILD cannot be chained")
	case "FROM", "MAINTAINER":
		return fmt.Errorf("%s is not allowed as an ONBUILD trigger", verb)
	}
	c.OnBuild = append(c.OnBuild, rest)
	return nil
}

func changeHealthcheck(c *dockerspec.DockerOCIImageConfig, rest string) error {
	if strings.EqualFold(rest, "NONE") {
		c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
		return nil
	}
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(rest, "--") {
		flag, after, _ := strings.Cut(rest, " ")
		rest = strings.TrimSpace(after)
		name, value, ok := strings.Cut(flag, "=")
		if !ok {
			return fmt.Errorf("%s needs a value: %s=...", flag, flag)
		}
		if name == "--retries" {
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil || n < 0 {
				return fmt.Errorf("--retries=%s is no count", value)
			}
			h.Retries = int(n)
			continue
		}
		field, ok := map[string]*time.Duration{
			"--interval": &h.Interval, "--timeout": &h.Timeout,
			"--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval,
		}[name]
		if !ok {
			return fmt.Errorf("unknown flag %s", name)
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 || d > 0 && d < time.Millisecond {
			return fmt.Errorf("%s=%s is no duration of at least 1ms", name, value)
		}
		*field = d
	}
	verb, args, _ := strings.Cut(rest, " ")
	args = strings.TrimSpace(args)
	if !strings.EqualFold(verb, "CMD") {
		return fmt.Errorf("HEALTHCHECK is followed by NONE or by CMD and a command, not by %q", verb)
	}
	if args == "" {
		return fmt.Errorf("HEALTHCHECK CMD needs a command")
	}
	if words, ok := jsonWords(args); ok {
		h.Test = append([]string{"CMD"}, words...)
	} else {
		h.Test = []string{"CMD-SHELL", args}
	}
	c.Healthcheck = h
	return nil
}
