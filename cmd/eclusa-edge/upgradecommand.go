package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/handover"
	"github.com/eclusa-lb/eclusa/version"
)

func newUpgradeCommand() *cobra.Command {
	return withConfig(&cobra.Command{
		Use:   "upgrade --config FILE",
		Short: "Replace the running edge by a new process without losing a connection",
		Long: `Replace the running edge by a new process without losing a connection.

Run it after the program or its configuration file was replaced. The running
edge starts its executable file anew, with its own arguments, and hands all
sockets over. Its established TCP connections go on in the process of before,
which ends with the last of them, after upgradeDrainTimeout at the latest.

If nothing comes of it the running edge serves as before, and the reason is
printed. The configuration file is checked first.`,
	}, func(c *cobra.Command, config Config) error {
		o, err := askUpgrade(c.Context(), config)
		if err != nil {
			return err
		}
		tell(c.ErrOrStderr(), "Process %d serves, %s after it was started.", o.PID, o.Took.Round(time.Millisecond))
		if mine := version.Number(); o.Version != "" && o.Version != mine {
			tell(c.ErrOrStderr(), "Its version is %s, and this program's is %s: the running edge starts the file that it was started from, which is another one.", o.Version, mine)
		}
		return nil
	})
}

func askUpgrade(ctx context.Context, c Config) (handover.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeTimeout+10*time.Second)
	defer cancel()
	conn, err := handover.Dial(ctx, c.StateDir)
	if err != nil {
		return handover.Outcome{}, fmt.Errorf("state directory %q: %w", c.StateDir, err)
	}
	defer conn.Close() //nolint:errcheck // the answer is what counts
	o, err := conn.AskUpgrade(ctx, handover.Hello{Edge: c.Name, Version: version.Number()})
	if err == nil && o.Error != "" {
		err = errors.New(o.Error)
	}
	if err != nil {
		return handover.Outcome{}, fmt.Errorf("upgrade edge %q, which serves as before: %w", c.Name, err)
	}
	return o, nil
}
