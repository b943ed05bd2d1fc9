// Renders templates with the real text/template, on data shaped as Ollama shapes it, and records what came out.
//
//	go run . <shapes.json >../gotemplate.json
//
// Standard library only. The tests read the recording and need no Go.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/template"
)

type arguments map[string]any

func (a arguments) String() string { return marshal(a, a == nil) }

type propertyType []string

func (p propertyType) String() string {
	if len(p) == 1 {
		return p[0]
	}
	if len(p) == 0 {
		return ""
	}
	return fmt.Sprintf("%v", []string(p))
}

func (p propertyType) MarshalJSON() ([]byte, error) {
	if len(p) == 1 {
		return json.Marshal(p[0])
	}
	return json.Marshal([]string(p))
}

func (p *propertyType) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*p = []string{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(p))
}

type property struct {
	AnyOf       []property   `json:"anyOf,omitempty"`
	Type        propertyType `json:"type,omitempty"`
	Items       any          `json:"items,omitempty"`
	Description string       `json:"description,omitempty"`
	Enum        []any        `json:"enum,omitempty"`
	Properties  *struct{}    `json:"properties,omitempty"`
	Required    []string     `json:"required,omitempty"`
}

func (p property) ToTypeScriptType() string {
	names := []string{}
	for _, option := range p.AnyOf {
		names = append(names, option.ToTypeScriptType())
	}
	if len(p.AnyOf) == 0 {
		for _, name := range p.Type {
			known := map[string]string{"string": "string", "number": "number", "integer": "number", "boolean": "boolean",
				"array": "any[]", "object": "Record<string, any>", "null": "null"}[name]
			if known == "" {
				known = "any"
			}
			names = append(names, known)
		}
	}
	if len(names) == 0 {
		return "any"
	}
	return strings.Join(names, " | ")
}

type properties map[string]property

func (p properties) String() string { return marshal(p, p == nil) }

type tool struct {
	Type     string `json:"type"`
	Items    any    `json:"items,omitempty"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string     `json:"type"`
			Defs       any        `json:"$defs,omitempty"`
			Items      any        `json:"items,omitempty"`
			Required   []string   `json:"required,omitempty"`
			Properties properties `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

func (t tool) String() string { return marshal(t, false) }

type tools []tool

func (t tools) String() string { return marshal(t, false) }

type message struct {
	Role, Content, Thinking string
	Images                  [][]byte
	ToolCalls               []struct {
		ID       string
		Function struct {
			Index     int
			Name      string
			Arguments arguments
		}
	}
	ToolName, ToolCallID string
}

func marshal(v any, empty bool) string {
	if empty {
		return "{}"
	}
	text, _ := json.Marshal(v)
	return string(text)
}

type shapes struct {
	Conversations map[string]struct {
		System     string
		Think      bool
		ThinkLevel string
		IsThinkSet bool
		Messages   []*message
		Tools      tools
	} `json:"conversations"`
	Templates []struct {
		Name     string `json:"name"`
		Template string `json:"template"`
	} `json:"templates"`
}

type result struct {
	Conversation string  `json:"conversation"`
	Rendered     *string `json:"rendered"`
	Error        string  `json:"error,omitempty"`
}

type recording struct {
	Name     string   `json:"name"`
	Template string   `json:"template"`
	Refused  string   `json:"refused,omitempty"`
	Cases    []result `json:"cases,omitempty"`
}

func main() {
	var in shapes
	raw := json.NewDecoder(os.Stdin)
	var whole json.RawMessage
	if err := raw.Decode(&whole); err != nil {
		panic(err)
	}
	if err := json.Unmarshal(whole, &in); err != nil {
		panic(err)
	}
	var kept struct {
		Conversations json.RawMessage `json:"conversations"`
	}
	_ = json.Unmarshal(whole, &kept)
	functions := template.FuncMap{
		"json":        func(v any) string { return marshal(v, false) },
		"currentDate": func(...string) string { return "2026-11-22" }, "yesterdayDate": func(...string) string { return "2026-11-21" },
		"toTypeScriptType": func(v any) string {
			if p, ok := v.(property); ok {
				return p.ToTypeScriptType()
			}
			return "any"
		},
	}
	names := []string{}
	for name := range in.Conversations {
		names = append(names, name)
	}
	slices.Sort(names)
	out := []recording{}
	for _, shape := range in.Templates {
		record := recording{Name: shape.Name, Template: shape.Template}
		parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(shape.Template)
		if err != nil {
			record.Refused = err.Error()
			out = append(out, record)
			continue
		}
		for _, name := range names {
			c := in.Conversations[name]
			var b bytes.Buffer
			err := parsed.Execute(&b, map[string]any{"System": c.System, "Messages": c.Messages, "Tools": c.Tools, "Response": "",
				"Think": c.Think, "ThinkLevel": c.ThinkLevel, "IsThinkSet": c.IsThinkSet})
			text := strings.ToValidUTF8(b.String(), "\ufffd")
			if err != nil {
				record.Cases = append(record.Cases, result{Conversation: name, Error: err.Error()})
			} else {
				record.Cases = append(record.Cases, result{Conversation: name, Rendered: &text})
			}
		}
		out = append(out, record)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	_ = encoder.Encode(map[string]any{"source": "Rendered by Go's text/template with gotemplate/main.go", "conversations": kept.Conversations, "templates": out})
}
