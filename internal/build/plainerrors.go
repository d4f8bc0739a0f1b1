package build

import (
	"context"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// plainErrors replaces the bytes of an error's message that are not UTF-8, which
// the name of a file may bring into it: gRPC cannot send such a status.
func plainErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if err == nil {
		return resp, nil
	}
	st := status.Convert(err).Proto()
	if utf8.ValidString(st.GetMessage()) {
		return resp, err
	}
	st.Message = strings.ToValidUTF8(st.GetMessage(), string(utf8.RuneError))
	return resp, status.ErrorProto(st)
}
