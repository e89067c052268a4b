package rclone

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"path"
	"time"

	"github.com/disko/backupd/internal/store"
)

// Put implements store.Putter.
func (t *Target) Put(ctx context.Context, key string, data []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return t.explain("write", key, err)
	}
	unlock, err := t.lock(ctx, key)
	if err != nil {
		return t.explain("write", key, err)
	}
	defer unlock()
	if t.staged {
		return t.explain("write", key, t.putStaged(ctx, key, data))
	}
	return t.explain("write", key, t.putInPlace(ctx, key, data))
}

// putStaged uploads to a temporary name, and lets the service give the object
// its own. rclone compares sizes, and hashes where the service has any, after
// the upload. What a kill cuts short, at any moment and in any version of
// rclone, has a temporary name.
func (t *Target) putStaged(ctx context.Context, key string, data []byte) error {
	tmp := path.Join(tmpDir, rand.Text())
	there, err := t.upload(ctx, tmp, data)
	if err == nil {
		t.tidy.Do(func() { t.removeLeftovers(ctx, tmp) })
		there, err = t.place(ctx, tmp, key, int64(len(data)))
	}
	if there {
		t.discard(ctx, tmp)
	}
	return err
}

// place moves an uploaded object, and says whether it is still at its
// temporary name. rclone looks whether the key is taken, and then leaves it
// there. Looking before the upload as well would cost every object a request
// or more, for keys that are random.
func (t *Target) place(ctx context.Context, tmp, key string, size int64) (there bool, err error) {
	err = t.into(ctx, parentOf(key), func() error {
		return t.call(ctx, "operations/movefile", map[string]any{
			"srcFs": targetFs, "srcRemote": tmp, "dstFs": targetFs, "dstRemote": key,
			"_config": map[string]any{"IgnoreExisting": true},
		}, nil)
	})
	if err != nil {
		return true, err
	}
	it, err := t.find(ctx, tmp)
	if err != nil {
		return true, err
	}
	if it != nil {
		return true, store.ErrExist
	}
	return false, t.wantSize(ctx, key, size)
}

func (t *Target) wantSize(ctx context.Context, key string, size int64) error {
	it, err := t.find(ctx, key)
	switch {
	case err != nil:
		return err
	case it == nil:
		return errors.New("rclone says that it stored the object, and it is not there")
	case it.Size != size:
		return fmt.Errorf("rclone says that it stored the object, and it has %d of %d bytes", it.Size, size)
	}
	return nil
}

// putInPlace is for the few services that can neither move nor copy. Where such
// a service does not store objects whole by itself, a kill of this process or
// of rclone may leave a short object under its key; readers find that by its
// size and checksums, and the commit of a snapshot looks at sizes.
func (t *Target) putInPlace(ctx context.Context, key string, data []byte) error {
	it, err := t.find(ctx, key)
	if err != nil {
		return err
	}
	if it != nil {
		return store.ErrExist
	}
	begun, err := t.upload(ctx, key, data)
	if err == nil {
		err = t.wantSize(ctx, key, int64(len(data)))
	}
	if err != nil && begun {
		// rclone may still be about to store the half that it got.
		t.end()
		t.discard(ctx, key) // it was absent, and is ours
	}
	return err
}

// upload stores data under a key, and says whether something may be there now.
//
// rclone takes uploads as forms, of unknown length; what is below its cut-off
// for streaming it keeps in memory, and then stores as an object of known
// length, with retries and a comparison. So the cut-off is set above the
// length. It would store a form that breaks off as a short object: see above.
func (t *Target) upload(ctx context.Context, key string, data []byte) (begun bool, err error) {
	config, err := json.Marshal(map[string]any{"StreamingUploadCutoff": len(data) + 1, "Inplace": true})
	if err != nil {
		return false, err
	}
	query := url.Values{"fs": {targetFs}, "remote": {parentOf(key)}, "_config": {string(config)}}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if _, err := w.CreateFormFile("file", path.Base(key)); err != nil {
		return false, err
	}
	head := bytes.Clone(form.Bytes())
	form.Reset()
	if err := w.Close(); err != nil {
		return false, err
	}
	body := io.MultiReader(bytes.NewReader(head), bytes.NewReader(data), bytes.NewReader(form.Bytes()))
	err = t.into(ctx, parentOf(key), func() error {
		return t.do(ctx, func(ctx context.Context, c *child) error {
			begun = true
			req, err := c.request(ctx, http.MethodPost, "operations/uploadfile?"+query.Encode(), w.FormDataContentType(), body)
			if err != nil {
				return err
			}
			req.ContentLength = int64(len(head) + len(data) + form.Len())
			return t.answer(c, req, nil)
		})
	})
	return begun, err
}

// into writes to a directory: alone, if it may have to be made.
func (t *Target) into(ctx context.Context, dir string, write func() error) error {
	if _, ok := t.known.Load(dir); ok {
		return write()
	}
	select {
	case t.making <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.making }()
	err := write()
	if err == nil {
		t.known.Store(dir, nil)
	}
	return err
}

// parentOf is the directory of a key; empty at the top.
func parentOf(key string) string {
	if dir := path.Dir(key); dir != "." {
		return dir
	}
	return ""
}

// discard removes what an upload that failed may have left, if that is
// possible at once. rclone may store what it got of a cancelled upload a moment
// later, so what is not there is looked for again.
func (t *Target) discard(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(cleanUpTime, t.o.StallTimeout))
	defer cancel()
	for wait := 25 * time.Millisecond; wait < 300*time.Millisecond; wait *= 2 {
		if !notThere(t.remove(ctx, key)) {
			return // removed, or a later run does
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// removeLeftovers removes temporary objects that are a day older than one
// just written, by the service's clock or, where the service keeps the times
// that it is given, by those of the writers.
func (t *Target) removeLeftovers(ctx context.Context, fresh string) {
	items, err := t.items(ctx, tmpDir, map[string]any{"filesOnly": true, "noMimeType": true})
	if err != nil {
		return
	}
	var now time.Time
	for _, it := range items {
		if it.Path == fresh {
			now, _ = time.Parse(time.RFC3339, it.ModTime) // zero: then nothing is old
		}
	}
	for _, it := range items {
		then, err := time.Parse(time.RFC3339, it.ModTime)
		if err == nil && now.Sub(then) > leftoverAge {
			_ = t.remove(ctx, it.Path) // else the next run does
		}
	}
}

// lock keeps this process's own writers of a key apart.
func (t *Target) lock(ctx context.Context, key string) (unlock func(), err error) {
	mine := make(chan struct{})
	for {
		other, taken := t.placing.LoadOrStore(key, mine)
		if !taken {
			return func() {
				t.placing.Delete(key)
				close(mine)
			}, nil
		}
		select {
		case <-other.(chan struct{}):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
