// What Ollama's own Go client does, one line of `verb<TAB>JSON` for each answer, in order: URL, then a GGUF file, as arguments.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/ollama/ollama/api"
)

var ctx = context.Background()

func say(verb string, value any) {
	text, err := json.Marshal(value)
	must(verb, err)
	fmt.Printf("%s\t%s\n", verb, text)
}

func must(verb string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", verb, err)
		os.Exit(1)
	}
}

func refused(verb string, err error) {
	var status api.StatusError
	if !errors.As(err, &status) {
		fmt.Fprintf(os.Stderr, "%s: not a StatusError: %v\n", verb, err)
		os.Exit(1)
	}
	say(verb, map[string]any{"status": status.StatusCode, "error": status.ErrorMessage})
}

func main() {
	base, err := url.Parse(os.Args[1])
	must("url", err)
	client := api.NewClient(base, http.DefaultClient)
	must("heartbeat", client.Heartbeat(ctx))
	version, err := client.Version(ctx)
	must("version", err)
	say("version", map[string]string{"version": version})
	listed, err := client.List(ctx)
	must("list", err)
	say("list", listed)

	yes, no := true, false
	few := map[string]any{"num_predict": 8, "temperature": 0}
	messages := []api.Message{{Role: "user", Content: "What is the capital of France?"}}
	for verb, stream := range map[string]*bool{"chat": &no, "chat-stream": &yes} {
		request := &api.ChatRequest{Model: "smollm2", Messages: messages, Stream: stream, Options: few}
		must(verb, client.Chat(ctx, request, func(part api.ChatResponse) error { say(verb, part); return nil }))
	}
	for verb, stream := range map[string]*bool{"generate": &no, "generate-stream": &yes} {
		request := &api.GenerateRequest{Model: "smollm2", Prompt: "The sea is", Stream: stream, Options: few}
		must(verb, client.Generate(ctx, request, func(part api.GenerateResponse) error { say(verb, part); return nil }))
	}
	// The client says `"system": ""` where its user says nothing: the model's own SYSTEM stands.
	speak := &api.GenerateRequest{Model: "pirate", Prompt: "Hi", Stream: &no}
	must("system", client.Generate(ctx, speak, func(part api.GenerateResponse) error { say("system", part); return nil }))

	vectors, err := client.Embed(ctx, &api.EmbedRequest{Model: "all-minilm", Input: []string{"one", "two"}})
	must("embed", err)
	say("embed", vectors)
	vector, err := client.Embeddings(ctx, &api.EmbeddingRequest{Model: "all-minilm", Prompt: "one"})
	must("embeddings", err)
	say("embeddings", vector)
	running, err := client.ListRunning(ctx)
	must("ps", err)
	say("ps", running)

	content, err := os.ReadFile(os.Args[2])
	must("read", err)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
	blob, err := os.Open(os.Args[2])
	must("open", err)
	must("blob", client.CreateBlob(ctx, digest, blob))
	making := &api.CreateRequest{Model: "made", Files: map[string]string{"m.gguf": digest}, System: "Be brief."}
	must("create", client.Create(ctx, making, func(step api.ProgressResponse) error { say("create", step); return nil }))
	shown, err := client.Show(ctx, &api.ShowRequest{Model: "made"})
	must("show", err)
	say("show", shown)
	must("copy", client.Copy(ctx, &api.CopyRequest{Source: "made", Destination: "copied"}))
	must("delete", client.Delete(ctx, &api.DeleteRequest{Model: "made"}))
	must("delete", client.Delete(ctx, &api.DeleteRequest{Model: "copied"}))
	_, err = client.Show(ctx, &api.ShowRequest{Model: "made"})
	refused("gone", err)
	wrong := &api.GenerateRequest{Model: "smollm2", Prompt: "x", Options: map[string]any{"num_ctx": "many"}}
	refused("wrong", client.Generate(ctx, wrong, func(api.GenerateResponse) error { return nil }))
}
