// Mongotest fills the MongoDB servers of tests and tells what is in them, because
// no package that can be had here has MongoDB's shell.
//
//	mongotest run DB COMMAND...   runs commands in extended JSON and prints the last reply
//	mongotest fill DB.COLL N      inserts documents of many types, with _id 0 to N-1
//	mongotest load DB             inserts document n into DB.first and then into DB.second, for ever
//	mongotest sum                 prints a line for each collection: name, count, last _id, SHA-256
//	mongotest replay              does what stands in the log of operations of an archive on stdin, and prints how
//	                              many there were: FerretDB lacks applyOps, by which mongorestore does it
//
// MONGO_URI says where the server is and who asks; by default it is this machine's own.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mongotest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	uri := os.Getenv("MONGO_URI")
	if uri == "" {
		uri = "mongodb://127.0.0.1:27017/?directConnection=true"
	}
	client, err := mongo.Connect(options.Client().ApplyURI(uri).SetServerSelectionTimeout(5 * time.Second))
	if err != nil {
		return err
	}
	defer client.Disconnect(context.WithoutCancel(ctx))
	switch {
	case len(args) > 2 && args[0] == "run":
		return commands(ctx, client.Database(args[1]), args[2:])
	case len(args) == 3 && args[0] == "fill":
		db, coll, _ := strings.Cut(args[1], ".")
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return fill(ctx, client.Database(db).Collection(coll), n)
	case len(args) == 2 && args[0] == "load":
		return load(ctx, client.Database(args[1]))
	case len(args) == 1 && args[0] == "sum":
		return sum(ctx, client)
	case len(args) == 1 && args[0] == "replay":
		return replay(ctx, client, bufio.NewReader(os.Stdin))
	}
	return errors.New("usage: mongotest run DB COMMAND... | fill DB.COLL N | load DB | sum | replay")
}

func commands(ctx context.Context, db *mongo.Database, texts []string) error {
	var reply bson.Raw
	for _, text := range texts {
		var command bson.D
		err := bson.UnmarshalExtJSON([]byte(text), false, &command)
		if err == nil {
			reply, err = db.RunCommand(ctx, command).Raw()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
	}
	fmt.Println(reply)
	return nil
}

func fill(ctx context.Context, coll *mongo.Collection, n int) error {
	var err error // Of the types, decimals are missing: FerretDB 1 has none.
	for from := 0; from < n && err == nil; from += 1000 {
		var documents []any
		for i := from; i < min(n, from+1000); i++ {
			documents = append(documents, bson.D{
				{Key: "_id", Value: int32(i)},
				{Key: "long", Value: int64(i) << 33},
				{Key: "double", Value: float64(i) / 3},
				{Key: "text", Value: strings.Repeat(fmt.Sprintf("Größe %d\n", i), 1+i%20)},
				{Key: "bytes", Value: bson.Binary{Data: bytes.Repeat([]byte{byte(i), 0, 0xff}, 1+i%50)}},
				{Key: "object", Value: bson.ObjectID{11: byte(i)}},
				{Key: "at", Value: bson.DateTime(i * 1000)},
				{Key: "nested", Value: bson.D{{Key: "list", Value: bson.A{nil, true, bson.D{{Key: "i", Value: int32(i)}}}}}},
			})
		}
		_, err = coll.InsertMany(ctx, documents)
	}
	return err
}

func load(ctx context.Context, db *mongo.Database) error {
	first, second := db.Collection("first"), db.Collection("second")
	for n := 0; ; n++ {
		document := bson.D{{Key: "_id", Value: int32(n)}, {Key: "text", Value: strings.Repeat("x", 500)}}
		for _, coll := range []*mongo.Collection{first, second} {
			if _, err := coll.InsertOne(ctx, document); err != nil {
				return err
			}
		}
	}
}

func sum(ctx context.Context, client *mongo.Client) error {
	databases, err := client.ListDatabaseNames(ctx, bson.D{})
	if err != nil {
		return err
	}
	slices.Sort(databases)
	for _, db := range databases {
		if db == "admin" || db == "config" || db == "local" {
			continue
		}
		names, err := client.Database(db).ListCollectionNames(ctx, bson.D{})
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, name := range names {
			found, err := client.Database(db).Collection(name).Find(ctx, bson.D{}, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
			if err != nil {
				return err
			}
			count, last, hash := 0, int64(-1), sha256.New()
			for found.Next(ctx) {
				hash.Write(found.Current)
				count, last = count+1, found.Current.Lookup("_id").AsInt64()
			}
			if err := found.Err(); err != nil {
				return err
			}
			fmt.Printf("%s.%s %d %d %x\n", db, name, count, last, hash.Sum(nil))
		}
	}
	return nil
}

// replay reads blocks up to a terminator: what an archive holds, then a header
// and documents of a namespace each. The log's has a collection and no database.
func replay(ctx context.Context, client *mongo.Client, archive *bufio.Reader) error {
	const magic, terminator = 0x8199e26d, 0xffffffff
	word := make([]byte, 4)
	if _, err := io.ReadFull(archive, word); err != nil || binary.LittleEndian.Uint32(word) != magic {
		return fmt.Errorf("not an archive: %x, %w", word, err)
	}
	done, block, isLog := 0, 0, false
	for first := true; ; {
		word, err := archive.Peek(4)
		if errors.Is(err, io.EOF) && len(word) == 0 && first {
			fmt.Println(done)
			return nil
		}
		if err != nil {
			return err
		}
		size := binary.LittleEndian.Uint32(word)
		if size == terminator {
			if _, err := archive.Discard(4); err != nil {
				return err
			}
			first, block = true, block+1
			continue
		}
		document := make(bson.Raw, size)
		if _, err := io.ReadFull(archive, document); err != nil {
			return err
		}
		if first {
			db, _ := document.Lookup("db").StringValueOK()
			coll, _ := document.Lookup("collection").StringValueOK()
			isLog = block > 0 && db == "" && coll == "oplog"
			first = false
			continue
		}
		if !isLog {
			continue
		}
		op, ns, object := document.Lookup("op").StringValue(), document.Lookup("ns").StringValue(), document.Lookup("o").Document()
		if op != "i" {
			return fmt.Errorf("the log has operation %q on %s", op, ns)
		}
		db, coll, _ := strings.Cut(ns, ".")
		// An operation may be done twice: the dump has read what it made.
		if _, err := client.Database(db).Collection(coll).InsertOne(ctx, object); err != nil && !mongo.IsDuplicateKeyError(err) {
			return err
		}
		done++
	}
}
