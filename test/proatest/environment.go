package proatest

import (
	"os"
	"slices"
	"strings"
)

// A test's programs see an environment without what users of Docker have in
// theirs: hosts, contexts, platforms, builders, proxies. Tests that are about
// one of these set it.
func init() {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if foreign(name) {
			_ = os.Unsetenv(name)
		}
	}
	if os.Getenv("HOME") == "" {
		_ = os.Setenv("HOME", "/root")
	}
}

func foreign(name string) bool {
	for _, prefix := range []string{"DOCKER_", "BUILDX_", "BUILDKIT_", "COMPOSE_", "LC_", "LANG"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"PROA_HOST", "CONTAINER_HOST", "SOURCE_DATE_EPOCH", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"}, strings.ToUpper(name))
}
