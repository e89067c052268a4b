package s3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"

	"github.com/disko/backupd/internal/store"
)

const (
	defaultRegion = "us-east-1"
	// metadataTimeout is for the server that only machines of Amazon's cloud
	// have. It answers in milliseconds, and elsewhere nobody does.
	metadataTimeout = 2 * time.Second
	noCredentials   = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or name files of them"
)

// configuration is what the SDK finds in the environment, in configuration
// files and in the machine's surroundings, with what the options say instead.
func configuration(ctx context.Context, opts Options) (aws.Config, error) {
	var load []func(*config.LoadOptions) error
	if opts.Region != "" {
		load = append(load, config.WithRegion(opts.Region))
	}
	if opts.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(opts.Profile))
	}
	if opts.AccessKeyIDFile != "" {
		secrets, err := readSecrets(opts)
		if err != nil {
			return aws.Config{}, err
		}
		load = append(load, config.WithCredentialsProvider(credentials.StaticCredentialsProvider{Value: secrets}))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return aws.Config{}, &failure{act: "read the AWS configuration", why: oneLine(err), permanent: true, cause: err}
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
	}
	return cfg, nil
}

// readSecrets reads all files that are named, and never falls back.
func readSecrets(opts Options) (c aws.Credentials, err error) {
	for _, s := range []struct {
		file, what string
		to         *string
	}{
		{opts.AccessKeyIDFile, "access key id", &c.AccessKeyID},
		{opts.SecretAccessKeyFile, "secret access key", &c.SecretAccessKey},
		{opts.SessionTokenFile, "session token", &c.SessionToken},
	} {
		if s.file == "" {
			continue
		}
		b, err := os.ReadFile(s.file)
		if err == nil && len(strings.TrimSpace(string(b))) == 0 {
			err = fmt.Errorf("%s is empty", s.file)
		}
		if err != nil {
			return aws.Credentials{}, &failure{act: "read the " + s.what, why: oneLine(err), permanent: true, cause: err}
		}
		*s.to = strings.TrimSpace(string(b))
	}
	return c, nil
}

// credentialsAtHand gets credentials before the first request needs them, so
// that their absence is told from a server that refuses them.
func credentialsAtHand(ctx context.Context, provider aws.CredentialsProvider, cfg aws.Config, amazon bool) error {
	fromMachine := aws.IsCredentialsProvider(cfg.Credentials, (*ec2rolecreds.Provider)(nil))
	if fromMachine && !amazon && os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT") == "" {
		// A machine's role in Amazon's cloud is nothing to another's server:
		// nothing was configured, and asking for the role would take seconds.
		return &failure{why: noCredentials, kind: store.ErrAccess}
	}
	asked := ctx
	if fromMachine {
		var cancel context.CancelFunc
		asked, cancel = context.WithTimeout(ctx, metadataTimeout)
		defer cancel()
	}
	_, err := provider.Retrieve(asked)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case fromMachine:
		return &failure{why: noCredentials + ", or give this machine a role", kind: store.ErrAccess, cause: err}
	}
	var network interface{ Timeout() bool }
	if errors.As(err, &network) {
		return &failure{act: "get credentials", why: oneLine(err), cause: err}
	}
	return &failure{act: "get credentials", why: oneLine(err), kind: store.ErrAccess, cause: err}
}
