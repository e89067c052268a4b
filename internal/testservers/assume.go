package testservers

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Credentials are an access key of less than all permissions.
type Credentials struct{ AccessKey, SecretKey, SessionToken string }

// Assume returns credentials that may do what a policy (JSON) allows, for an
// hour. Only MinIO has them.
func (s *S3) Assume(t testing.TB, policy string) Credentials {
	t.Helper()
	client := sts.New(sts.Options{BaseEndpoint: aws.String(s.Endpoint), Region: s.Region, Credentials: s.credentials(), Retryer: aws.NopRetryer{}})
	out, err := client.AssumeRole(t.Context(), &sts.AssumeRoleInput{
		// MinIO asks for neither; the SDK does.
		RoleArn:         aws.String("arn:aws:iam::000000000000:role/test"),
		RoleSessionName: aws.String("test"),
		Policy:          &policy,
	})
	if err != nil {
		t.Fatalf("assume a role: %v", err)
	}
	c := out.Credentials
	return Credentials{*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken}
}
