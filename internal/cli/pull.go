package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"proa/internal/cli/credentials"
	"proa/internal/client"
	"proa/internal/failure"
)

// authFor gives the credentials for the registry of an image's name.
func (a *app) authFor(ctx context.Context, named reference.Named) (registry.AuthConfig, error) {
	f, err := credentials.Open()
	if err != nil {
		return registry.AuthConfig{}, err
	}
	return f.Get(ctx, reference.Domain(named))
}

func parseRef(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, failure.Hint(fmt.Errorf("invalid image name %q: %w", ref, err), "a name looks like busybox, busybox:1.36 or registry:5000/team/app:v1")
	}
	return named, nil
}

func (a *app) pullCmd() *cobra.Command {
	var quiet, all bool
	var platform string
	cmd := &cobra.Command{
		Use: "pull [flags] NAME[:TAG|@DIGEST]", Short: "Fetch an image from a registry", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			named, err := parseRef(args[0])
			if err != nil {
				return err
			}
			if all && !reference.IsNameOnly(named) {
				return errors.New("a tag cannot be given together with --all-tags")
			}
			out := a.out
			if !all {
				named = reference.TagNameOnly(named)
				if reference.IsNameOnly(mustParse(args[0])) && !quiet {
					fmt.Fprintf(out, "Using default tag: latest\n")
				}
			}
			return a.pull(ctx, c, named, platform, quiet, out)
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image's full name")
	cmd.Flags().BoolVarP(&all, "all-tags", "a", false, "all tags of the repository")
	cmd.Flags().StringVar(&platform, "platform", "", "another platform than this host's, os/arch[/variant]")
	return cmd
}

func mustParse(ref string) reference.Named {
	n, _ := reference.ParseNormalizedNamed(ref)
	return n
}

// pull fetches an image and shows how that goes on out. A name without a tag
// means all of them.
func (a *app) pull(ctx context.Context, c *client.Client, named reference.Named, platform string, quiet bool, out io.Writer) error {
	auth, err := a.authFor(ctx, named)
	if err != nil {
		return err
	}
	b := newBoard(out)
	defer b.end()
	err = c.ImagePull(ctx, named.String(), platform, auth, func(p client.Progress) {
		if !quiet {
			b.show(p)
		}
	})
	b.end()
	if err != nil {
		return loginHint(err, named)
	}
	if quiet {
		fmt.Fprintln(out, named.String())
	} else if !reference.IsNameOnly(named) {
		fmt.Fprintln(out, named.String())
	}
	return nil
}

// loginHint tells how to log in where a registry wants that.
func loginHint(err error, named reference.Named) error {
	var e *client.APIError
	if errors.As(err, &e) && (e.Status == 401 || e.Status == 403) {
		host := reference.Domain(named)
		if host == "docker.io" {
			host = ""
		}
		return failure.Hint(err, strings.TrimSpace("proa login "+host))
	}
	return err
}

func (a *app) pushCmd() *cobra.Command {
	var quiet, all bool
	var platform string
	cmd := &cobra.Command{
		Use: "push [flags] NAME[:TAG]", Short: "Send an image to its registry", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			named, err := parseRef(args[0])
			if err != nil {
				return err
			}
			switch {
			case all && !reference.IsNameOnly(named):
				return errors.New("a tag cannot be given together with --all-tags")
			case !all:
				if reference.IsNameOnly(named) && !quiet {
					fmt.Fprintf(a.out, "Using default tag: latest\n")
				}
				named = reference.TagNameOnly(named)
			}
			if _, ok := named.(reference.Digested); ok {
				return failure.Hint(errors.New("cannot push to a digest"), "give the image a tag: proa tag "+args[0]+" "+reference.FamiliarName(named)+":TAG")
			}
			auth, err := a.authFor(ctx, named)
			if err != nil {
				return err
			}
			b := newBoard(a.out)
			defer b.end()
			if err := c.ImagePush(ctx, named, auth, func(p client.Progress) {
				if !quiet {
					b.show(p)
				}
			}, platform); err != nil {
				return loginHint(err, named)
			}
			b.end()
			if quiet {
				fmt.Fprintln(a.out, named.String())
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&platform, "platform", "", "send the manifest of this platform alone, os/arch[/variant]")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image's full name")
	cmd.Flags().BoolVarP(&all, "all-tags", "a", false, "all tags of the repository that are here")
	return cmd
}

func (a *app) loginCmd() *cobra.Command {
	var user, password string
	var stdin bool
	cmd := &cobra.Command{
		Use: "login [flags] [REGISTRY]", Short: "Log in to a registry (default: Docker Hub)", Args: cobra.MaximumNArgs(1),
	}
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		address := "docker.io"
		if len(args) == 1 {
			address = args[0]
		}
		f, err := credentials.Open()
		if err != nil {
			return err
		}
		key := credentials.Key(address)
		switch {
		case stdin && password != "":
			return errors.New("use either --password or --password-stdin")
		case stdin && user == "":
			return failure.Hint(errors.New("--password-stdin needs a user name"), "proa login -u NAME --password-stdin "+address)
		case password != "":
			fmt.Fprintln(a.err, "warning: other users of this host can see a password on the command line; --password-stdin hides it")
		}
		if user == "" {
			old, err := f.Get(ctx, address)
			if err != nil {
				return err
			}
			if user, err = a.askUser(old.Username); err != nil {
				return err
			}
		}
		if stdin {
			b, err := io.ReadAll(io.LimitReader(a.in, 1<<20))
			if err != nil {
				return fmt.Errorf("cannot read the password: %w", err)
			}
			password = strings.TrimRight(string(b), "\r\n")
		} else if password == "" {
			if password, err = a.askPassword(); err != nil {
				return err
			}
		}
		if password == "" {
			return errors.New("a password is needed")
		}
		auth := registry.AuthConfig{Username: user, Password: password, ServerAddress: key}
		r, err := c.Login(ctx, auth)
		if err != nil {
			return err
		}
		if r.IdentityToken != "" {
			auth.Password, auth.IdentityToken = "", r.IdentityToken
		}
		plain, err := f.Put(ctx, auth)
		if err != nil {
			return err
		}
		if plain {
			fmt.Fprintf(a.err, "warning: the password is kept unencrypted in %s; a credential helper (\"credsStore\" there) would keep it safe\n", f.Path())
		}
		fmt.Fprintln(a.out, r.Status)
		return nil
	})
	cmd.Flags().StringVarP(&user, "username", "u", "", "user name")
	cmd.Flags().StringVarP(&password, "password", "p", "", "password or token (others can see it: prefer --password-stdin)")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

func (a *app) askUser(before string) (string, error) {
	if !isTerminal(a.in) {
		return "", failure.Hint(errors.New("cannot ask for a user name: standard input is not a terminal"), "proa login -u NAME --password-stdin REGISTRY < FILE")
	}
	if before != "" {
		fmt.Fprintf(a.err, "Username (%s): ", before)
	} else {
		fmt.Fprint(a.err, "Username: ")
	}
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("cannot read the user name: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		line = before
	}
	if line == "" {
		return "", errors.New("a user name is needed")
	}
	return line, nil
}

func (a *app) askPassword() (string, error) {
	if !isTerminal(a.in) {
		return "", failure.Hint(errors.New("cannot ask for a password: standard input is not a terminal"), "proa login -u NAME --password-stdin REGISTRY < FILE")
	}
	fmt.Fprint(a.err, "Password: ")
	b, err := term.ReadPassword(int(a.in.Fd()))
	fmt.Fprintln(a.err)
	if err != nil {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	return string(b), nil
}

func (a *app) logoutCmd() *cobra.Command {
	return &cobra.Command{
		Use: "logout [REGISTRY]", Short: "Forget the credentials for a registry (default: Docker Hub)", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			address := "docker.io"
			if len(args) == 1 {
				address = args[0]
			}
			f, err := credentials.Open()
			if err != nil {
				return err
			}
			had, err := f.Erase(cmd.Context(), address)
			if err != nil {
				return err
			}
			if !had {
				fmt.Fprintf(a.out, "Not logged in to %s\n", credentials.Key(address))
				return nil
			}
			fmt.Fprintf(a.out, "Removing login credentials for %s\n", credentials.Key(address))
			return nil
		},
	}
}
