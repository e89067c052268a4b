// Command demo is the application of `make demo`: a guest book that keeps its
// entries in one directory and pictures in another.
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

const (
	entries  = "/data/entries"
	pictures = "/pictures"
	address  = "127.0.0.1:8080"
)

// main serves; "demo get PATH" and "demo post PATH" (the body is stdin) ask the
// server of the same container, which holds nothing else that could.
func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "get":
		return show(http.Get("http://" + address + args[1]))
	case len(args) == 2 && args[0] == "post":
		return show(http.Post("http://"+address+args[1], "application/octet-stream", os.Stdin))
	case len(args) > 0:
		return errors.New("usage: demo [get PATH | post PATH]")
	}
	http.HandleFunc("GET /{$}", list)
	http.HandleFunc("POST /{$}", sign)
	http.HandleFunc("POST /pictures/{name}", upload)
	return http.ListenAndServe(address, nil)
}

func show(r *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(os.Stdout, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return nil
}

func list(w http.ResponseWriter, _ *http.Request) {
	text, err := os.ReadFile(entries)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	files, err := os.ReadDir(pictures)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "%d entries, %d pictures\n%s", strings.Count(string(text), "\n"), len(files), text)
}

func sign(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err == nil {
		err = add(strings.TrimSpace(string(text)) + "\n")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func add(line string) error {
	f, err := os.OpenFile(entries, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

func upload(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body)
	if err == nil {
		err = os.WriteFile(filepath.Join(pictures, filepath.Base(r.PathValue("name"))), content, 0o600)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
