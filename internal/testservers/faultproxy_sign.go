package testservers

import (
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// faultSign signs a request with the server's own credentials, as SigV4 asks
// (the signature covers the host, the range and the conditions). The body's
// hash is the one that the client signed.
func (s *S3) faultSign(r *http.Request) error {
	hash := r.Header.Get("X-Amz-Content-Sha256")
	r.Header.Del("Authorization")
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	return signer.SignHTTP(r.Context(), aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, r, hash, "s3", s.Region, time.Now())
}
