package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/lab"
)

func forwardCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "forward HOST ADDRESS:PORT",
		Short: "Reach a port of a host of a running lab from this machine, such as an edge's status page",
		Args:  cobra.ExactArgs(2),
	}
	dir := dirFlags(c)
	listen := c.Flags().String("listen", "", "where to listen (default 127.0.0.1 and the same port)")
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := open(dir())
		if err != nil {
			return err
		}
		h := l.Host(args[0])
		if h == nil {
			return fmt.Errorf("host %q: the lab has none of that name", args[0])
		}
		_, port, err := net.SplitHostPort(args[1])
		if err != nil {
			return err
		}
		if *listen == "" {
			*listen = net.JoinHostPort("127.0.0.1", port)
		}
		listener, err := new(net.ListenConfig).Listen(c.Context(), "tcp", *listen)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "http://%s/ is %s of %s, until you press Ctrl-C\n", listener.Addr(), args[1], h.Name)
		return forward(c.Context(), listener, h, args[1])
	}
	return c
}

// forward connects whoever connects to the listener with the address as the host
// sees it, until ctx ends.
func forward(ctx context.Context, from net.Listener, h *lab.Host, to string) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { from.Close() })
	defer stop()
	for {
		c, err := from.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return g.Wait()
			}
			return err
		}
		g.Go(func() error {
			defer c.Close()
			dialing, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			// A host that is down refuses this one, and may be up for the next.
			if up, err := h.DialContext(dialing, "tcp", to); err == nil {
				join(ctx, c, up)
			}
			return nil
		})
	}
}

// join copies both ways until one side is done or ctx ends.
func join(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return pipe(a, b) })
	g.Go(func() error { return pipe(b, a) })
	_ = g.Wait() // how the two ended is theirs to know
}

func pipe(to, from net.Conn) error {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		return half.CloseWrite()
	}
	to.Close()
	from.Close()
	return err
}
