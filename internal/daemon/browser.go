package daemon

import (
	"net"
	"net/http"
	"strings"
)

// keepBrowsersOut refuses what a web page may have sent to a TCP socket. The
// socket is on loopback, and so is every browser of this host: a page can name
// 127.0.0.1 itself, or a name of its own that resolves to it by then (DNS
// rebinding). A browser says where a page came from in Origin or
// Sec-Fetch-Site, and the name it was told in Host; no client of the API sends
// the first two, and all name this host. Unix sockets are beyond a browser.
func keepBrowsersOut(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, tcp := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); tcp {
			switch {
			case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "":
				refuse(w, "this socket is not for web pages")
				return
			case !namesThisHost(r.Host):
				refuse(w, "this socket is served under localhost and loopback addresses only")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Connection", "close")
	w.WriteHeader(http.StatusForbidden)
	_, _ = w.Write([]byte(`{"message":"` + why + `"}` + "\n"))
}

// namesThisHost says whether the value of a Host header is localhost or a
// loopback address. HTTP/1.0 may leave it out, which browsers never do.
func namesThisHost(host string) bool {
	if host == "" {
		return true
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}
