package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets"
	"github.com/disko/backupd/internal/targets/retry"
)

// targetFlags are the settings of targets that their names do not tell.
type targetFlags struct {
	o      targets.Options
	uid    string
	gid    string
	hidden *pflag.FlagSet
}

// flags adds the settings. They are left out of every command's help: `backupd
// help targets` has them.
func (t *targetFlags) flags(f *pflag.FlagSet) {
	h := pflag.NewFlagSet("targets", pflag.ContinueOnError)
	s3 := &t.o.S3
	h.StringVar(&s3.Endpoint, "s3-endpoint", "", "`URL` of an S3 server other than Amazon's")
	h.StringVar(&s3.Region, "s3-region", "", "`region` of the bucket (default: AWS_REGION, or the profile's)")
	h.StringVar(&s3.Profile, "s3-profile", "", "`name` of a profile in the AWS configuration files")
	h.BoolVar(&s3.PathStyle, "s3-path-style", false, "the bucket's name stands in the path (default: unless the server is Amazon's)")
	h.StringVar(&s3.StorageClass, "s3-storage-class", "", "storage `class` of new objects, such as STANDARD_IA")
	h.StringVar(&s3.SSE, "s3-sse", "", "`kind` of encryption by the server: AES256 or aws:kms")
	h.StringVar(&s3.SSEKeyID, "s3-sse-key-id", "", "`id` of the key for aws:kms")
	h.StringVar(&s3.CAFile, "s3-ca-file", "", "`FILE` with the certificate of the authority that the server trusts")
	h.StringVar(&s3.LockMode, "s3-lock-mode", "", "object lock: GOVERNANCE or COMPLIANCE")
	h.IntVar(&s3.LockDays, "s3-lock-days", 0, "`days` that new objects are locked")
	h.StringVar(&s3.AccessKeyIDFile, "s3-access-key-id-file", os.Getenv("AWS_ACCESS_KEY_ID_FILE"), "`FILE` that holds the access key id (or AWS_ACCESS_KEY_ID_FILE)")
	h.StringVar(&s3.SecretAccessKeyFile, "s3-secret-access-key-file", os.Getenv("AWS_SECRET_ACCESS_KEY_FILE"), "`FILE` that holds the secret access key (or AWS_SECRET_ACCESS_KEY_FILE)")
	h.StringVar(&s3.SessionTokenFile, "s3-session-token-file", os.Getenv("AWS_SESSION_TOKEN_FILE"), "`FILE` that holds a session token (or AWS_SESSION_TOKEN_FILE)")
	h.StringVar(&t.uid, "nfs-uid", "", "`uid` to be on an NFS server (default: one's own)")
	h.StringVar(&t.gid, "nfs-gid", "", "`gid` to be on an NFS server (default: one's own)")
	ssh := &t.o.SFTP
	h.StringArrayVar(&ssh.IdentityFiles, "sftp-identity", nil, "`FILE` with an ssh private key; may be repeated (default: the agent's, and those in ~/.ssh)")
	h.StringVar(&ssh.IdentityPassphraseFile, "sftp-identity-passphrase-file", "", "`FILE` that holds the passphrase of that key")
	h.StringVar(&ssh.PasswordFile, "sftp-password-file", "", "`FILE` that holds the password")
	h.StringVar(&ssh.KnownHostsFile, "sftp-known-hosts", "", "`FILE` of known hosts (default: ~/.ssh/known_hosts)")
	h.StringVar(&ssh.HostKey, "sftp-host-key", "", "`key` of the host, as in \"ssh-ed25519 AAAA...\"")
	h.StringVar(&t.o.Rclone.ConfigFile, "rclone-config", "", "rclone's configuration `FILE`")
	h.StringVar(&t.o.Rclone.Binary, "rclone-binary", "", "the rclone `program` (default: the one in PATH)")
	h.DurationVar(&t.o.Retry.Outage, "outage", 0, "how long a target may be away before a command gives up (default 15m)")
	h.VisitAll(func(fl *pflag.Flag) {
		shown := *fl
		f.AddFlag(&shown)
		f.Lookup(fl.Name).Hidden = true
	})
	t.hidden = h
}

// options are the settings of targets, checked.
func (a *app) targetOptions() (o targets.Options, err error) {
	o = a.target.o
	if o.NFS.UID, err = id("nfs-uid", a.target.uid); err != nil {
		return o, err
	}
	if o.NFS.GID, err = id("nfs-gid", a.target.gid); err != nil {
		return o, err
	}
	o.Retry.Notify = func(e retry.Event) {
		if a.log != nil {
			a.log.Warn(e.String())
			return
		}
		fmt.Fprintf(a.stderr, "backupd: %s\n", e)
	}
	return o, nil
}

func id(flag, value string) (*uint32, error) {
	if value == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%w: --%s %q: must be a number, as in 1000", snapshot.ErrUsage, flag, value)
	}
	u := uint32(n)
	return &u, nil
}

// openTarget opens a target that exists.
func (a *app) openTarget(ctx context.Context, name string) (store.Writer, error) {
	return a.goTo(ctx, name, targets.Open)
}

// createTarget opens a target to write to, made where only its last part is missing.
func (a *app) createTarget(ctx context.Context, name string) (store.Writer, error) {
	return a.goTo(ctx, name, targets.Create)
}

func (a *app) goTo(ctx context.Context, name string, open func(context.Context, string, targets.Options) (store.Writer, error)) (store.Writer, error) {
	o, err := a.targetOptions()
	if err != nil {
		return nil, err
	}
	if err := targets.Check(name, o); err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrUsage, err)
	}
	st, err := open(ctx, name, o)
	if err != nil {
		return nil, err
	}
	if c, ok := st.(io.Closer); ok {
		a.closers.add(c)
	}
	return st, nil
}

// readOnly hides what can write, so that no reader does.
type readOnly struct{ store.Reader }

func noTarget() error {
	return fmt.Errorf("%w: no target named; say --target TARGET, or set BACKUPD_TARGET", snapshot.ErrUsage)
}

// targetsTopic is `backupd help targets`.
func (a *app) targetsTopic() *cobra.Command {
	return &cobra.Command{
		Use: "targets", Short: "Where snapshots can be kept, and the settings of each place",
		Long: `A target is named by
  /backups                       a directory, which may be mounted from anywhere
  s3://bucket/prefix             Amazon S3, or any server that speaks its protocol
  nfs://host/export/path         an NFS server, without mounting it
  sftp://user@host/path          an SSH server
  rclone:remote:path             whatever rclone reaches

Settings may also stand in the name (s3://bucket/prefix?endpoint=URL&region=R),
which counts for that target alone. Each is also BACKUPD_<FLAG>; AWS_* is honoured.

` + a.target.hidden.FlagUsages() + `
docs/targets.md has more: permissions, costs, object lock, durability.`,
	}
}
