// Command probe is what the tests of package docker run in containers.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/disko/backupd/internal/docker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch args[0] {
	case "self": // prints what Self says
		e, err := docker.Connect(ctx, func(text string) { fmt.Fprintln(os.Stderr, text) })
		if err != nil {
			return err
		}
		defer e.Close()
		self, err := e.Self(ctx)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(self)
	case "sleep": // until it is told to end
		<-ctx.Done()
		return nil
	case "stubborn": // does not end when it is told to
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	case "echo": // its stdin's lines, until that ends
		fmt.Println("ready")
		fmt.Fprintln(os.Stderr, "complaint")
		lines := bufio.NewScanner(os.Stdin)
		go func() {
			<-ctx.Done()
			fmt.Println("terminated")
			os.Exit(3)
		}()
		for lines.Scan() {
			fmt.Println("echo " + lines.Text())
		}
		os.Exit(7)
	case "write": // PATH TEXT
		return os.WriteFile(args[1], []byte(args[2]), 0o644)
	case "cat": // PATH...
		for _, p := range args[1:] {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Println(string(b))
		}
		return nil
	case "show": // who and where it is
		wd, _ := os.Getwd()
		fmt.Printf("uid %d gid %d in %s\n", os.Getuid(), os.Getgid(), wd)
		fmt.Println("args " + strings.Join(args[1:], "|"))
		for _, v := range os.Environ() {
			fmt.Println("env " + v)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		fmt.Print(string(mounts))
		return nil
	}
	return fmt.Errorf("probe: no such mode: %q", args)
}
