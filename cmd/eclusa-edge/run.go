package main

import (
	"context"
	"errors"
)

func run(context.Context, Config) error { return errors.New("serving is not wired up yet") }
