package proatest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// EchoExecs runs `echo N` n times in a container, so many at once, by a client
// that reads the head with a buffer and then the raw socket, as docker-py and
// what is built on it do: output that comes in one read with the head is lost
// to it. Each output must be there, whole.
func EchoExecs(t testing.TB, socket, container string, n, at int) {
	t.Helper()
	numbers := make(chan int)
	go func() {
		defer close(numbers)
		for i := range n {
			numbers <- i
		}
	}()
	var all sync.WaitGroup
	for range at {
		all.Go(func() {
			for i := range numbers {
				if err := echoExec(socket, container, i); err != nil {
					t.Errorf("exec %d of %d, %d at once: %v", i, n, at, err)
				}
			}
		})
	}
	all.Wait()
}

func echoExec(socket, container string, n int) error {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	body := fmt.Sprintf(`{"AttachStdout":true,"AttachStderr":true,"Cmd":["echo","%d"]}`, n)
	resp, err := c.Post("http://docker/containers/"+container+"/exec", "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var x struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&x); err != nil || resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("create: %s %v", resp.Status, err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wireLimit))
	if _, err := conn.Write(RequestBytes("POST", "/exec/"+x.ID+"/start", `{"Detach":false,"Tty":false}`, Upgrade...)); err != nil {
		return err
	}
	buf, head := make([]byte, 64<<10), []byte{}
	for !bytes.Contains(head, []byte("\r\n\r\n")) {
		k, err := conn.Read(buf)
		if err != nil {
			return fmt.Errorf("head: %w", err)
		}
		head = append(head, buf[:k]...) // what is behind the empty line is lost to this client
	}
	out, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	stdout, stderr, err := Frames(out)
	if want := fmt.Sprintf("%d\n", n); stdout != want || stderr != "" || err != nil {
		return fmt.Errorf("%q %q %v after the head %q", stdout, stderr, err, head)
	}
	return nil
}
