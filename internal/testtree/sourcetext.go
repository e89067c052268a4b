package testtree

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

// writer makes text like source code. Its vocabulary comes from the directory a
// file lies in, so that files of one directory resemble each other and later
// versions of a file resemble earlier ones, whatever their seeds.
type writer struct {
	rng    *rand.Rand
	idents []string // the directory's own, then those that everybody uses
	depth  int
	local  [localNames]string // names this file is about
	out    []byte
}

const (
	ownIdents    = 220
	commonIdents = 500
	localNames   = 20
)

var common = makeIdents(rand.New(rand.NewPCG(1, 2)), commonIdents)

func vocabulary(dir string) []string {
	return append(makeIdents(rand.New(rand.NewPCG(hash(dir), 3)), ownIdents), common...)
}

func makeIdents(rng *rand.Rand, n int) []string {
	idents := make([]string, n)
	for i := range idents {
		var b strings.Builder
		style := rng.IntN(5)
		for w := range 1 + rng.IntN(3) {
			word := wordList[rng.IntN(len(wordList))]
			switch {
			case style == 0 && w > 0:
				b.WriteByte('_')
				b.WriteString(word)
			case style == 1 || style > 1 && w > 0:
				b.WriteString(strings.ToUpper(word[:1]) + word[1:])
			default:
				b.WriteString(word)
			}
		}
		idents[i] = b.String()
	}
	return idents
}

// ident mostly chooses a name of this file, else one of the directory's, and of
// both the first ones more often.
func (w *writer) ident() string {
	x := w.rng.Uint64()
	if x&7 < 6 {
		return w.local[min(x>>8%localNames, x>>24%localNames)]
	}
	n := uint64(len(w.idents))
	return w.idents[min(x>>8%n, x>>28%n)]
}

// A template's bytes stand for themselves but for these:
//
//	@ identifier   ^ identifier, capital   # number   ~ a few words   { and } also change the indent
var templates = map[string][]string{
	".go": {
		"if err != nil {", "return nil, err", "}", "}", "}", "return @, nil", "@ := @.^(ctx, @)", "for _, @ := range @ {", "func (s *^) ^(ctx context.Context, @ ^) error {",
		"// ^ ~.", "// ~", "type ^ struct {", "^ string `json:\"@\"`", "^ int", "@, err := @.^(@)", "switch @ {", "case ^:", "@.^ = #",
		"return fmt.Errorf(\"~: %w\", err)", "", "", "if @ == nil || @.^ > # {", "defer @.^()", "@ = append(@, @.^...)", "t.Errorf(\"^() = %v, want %v\", @, @)",
	},
	".ts": {
		"const @ = await @.@(@);", "import { ^, @ } from './@';", "}", "}", "if (@.@ === '@') {", "return @.map((@) => @.@);", "export function @(@: ^): ^ {", "// ~",
		"this.@ = @;", "throw new Error('~');", "}", "/** ~. */", "private readonly @: ^;", "", "<^ @={@} className=\"@-@\" />", "@?.@ ?? #;", "describe('~', () => {", "});",
	},
	".py": {
		"def @(self, @, @=None):", "    return self.@", "    if @ is None:", "        raise ValueError(\"~\")", "", "import @", "from @ import @", "    # ~", "    for @ in @.@():",
		"        @[\"@\"] = #", "    self.@ = @", "class ^(^):", "    \"\"\"~.\"\"\"", "@ = @.@(@, @=#)", "        @.append(@)", "    assert @ == #", "",
	},
	".c": {
		"if (@ < 0) {", "return -E^;", "}", "}", "struct @ *@ = @->@;", "static int @(struct @ *@, int @) {", "/* ~ */", "#define ^ #", "@->@ = @(@, #);", "goto @;", "}",
		"for (i = 0; i < @->@; i++) {", "memset(&@, 0, sizeof(@));", "", "pr_err(\"~: %d\\n\", @);", "spin_lock(&@->@);", "#include <linux/@.h>", "u32 @;",
	},
	".json": {
		"\"@\": {", "},", "},", "\"@\": \"@\",", "\"@\": #,", "\"@\": true,", "\"@\": \"~\",", "\"@\": [\"@\", \"@\"],", "\"@\": \"^#.#.#\",", "\"url\": \"https://@.example/@/@\",",
	},
	".md": {
		"## ^ ~", "", "~ ~ `@` ~.", "- ~ ~", "* `@` - ~ ~ ~", "~ ~ ~ ~ ~, ~ ~.", "```", "    @ --@ #", "[~](@/@.md)", "",
	},
	".min.js": {
		"function(e,t){return e.@(t)}", ",@:function(){", "}", "var n=t.@||#;", "if(!e.@)return;", "e.exports=@;", "\"@-@\"===r&&", "this.@=t,", "o.^=new ^(#),",
	},
}

var licences = []string{
	"Licensed under the Apache License, Version 2.0 (the \"License\");\nyou may not use this file except in compliance with the License.\nYou may obtain a copy of the License at\n\n    http://www.apache.org/licenses/LICENSE-2.0\n\nUnless required by applicable law or agreed to in writing, software\ndistributed under the License is distributed on an \"AS IS\" BASIS,\nWITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.\nSee the License for the specific language governing permissions and\nlimitations under the License.",
	"Use of this source code is governed by a BSD-style\nlicense that can be found in the LICENSE file.",
	"SPDX-License-Identifier: GPL-2.0-only",
	"This program is free software: you can redistribute it and/or modify\nit under the terms of the GNU General Public License as published by\nthe Free Software Foundation, either version 3 of the License, or\n(at your option) any later version.",
}

// sourceText gives about size bytes of text for a file with this extension.
func sourceText(rng *rand.Rand, idents []string, ext string, size int, out []byte) []byte {
	w := writer{rng: rng, idents: idents, out: out[:0]}
	for i := range w.local {
		w.local[i] = idents[min(rng.IntN(len(idents)), rng.IntN(len(idents)))]
	}
	lines := templates[ext]
	w.header(ext, size)
	blocks := []int{len(w.out)}
	for len(w.out) < size {
		// Code repeats itself: now and then some lines come back as they are.
		if len(blocks) > 8 && rng.IntN(9) == 0 {
			from := rng.IntN(len(blocks) - 5)
			w.out = append(w.out, w.out[blocks[from]:blocks[from+2+rng.IntN(3)]]...)
		}
		if ext != ".min.js" {
			blocks = append(blocks, len(w.out))
		}
		w.line(lines[min(rng.IntN(len(lines)), rng.IntN(len(lines)+4))], ext != ".min.js")
	}
	return w.out
}

func (w *writer) header(ext string, size int) {
	comment := map[string]string{".go": "// ", ".ts": "// ", ".c": " * ", ".py": "# "}[ext]
	if comment == "" || size < 600 || w.rng.IntN(3) == 0 {
		return
	}
	w.out = append(w.out, comment+"Copyright "+strconv.Itoa(2009+w.rng.IntN(16))+" The "+w.local[0]+" Authors.\n"...)
	for line := range strings.SplitSeq(licences[hash(w.idents[0])%uint64(len(licences))], "\n") {
		w.out = append(append(append(w.out, comment...), line...), '\n')
	}
	w.out = append(w.out, '\n')
}

func (w *writer) line(template string, ends bool) {
	if strings.HasPrefix(template, "}") {
		w.depth = max(w.depth-1, 0)
	}
	if ends && template != "" {
		w.out = append(w.out, "\t\t\t\t\t\t"[:w.depth]...)
	}
	for i := range len(template) {
		switch c := template[i]; c {
		case '@':
			w.out = append(w.out, w.ident()...)
		case '^':
			at := len(w.out)
			w.out = append(w.out, w.ident()...)
			if w.out[at] >= 'a' {
				w.out[at] -= 'a' - 'A'
			}
		case '#':
			w.out = strconv.AppendUint(w.out, w.rng.Uint64()>>(44+w.rng.Uint32N(20)), 10)
		case '~':
			w.words()
		default:
			w.out = append(w.out, c)
		}
	}
	if strings.HasSuffix(template, "{") {
		w.depth = min(w.depth+1, 6)
	}
	if ends {
		w.out = append(w.out, '\n')
	}
}

var little = []string{"the", "of", "a", "is", "to", "and", "for", "in", "that", "when", "not", "with", "by", "must", "be", "it"}

func (w *writer) words() {
	for i := range 2 + w.rng.IntN(5) {
		if i > 0 {
			w.out = append(w.out, ' ')
		}
		if x := w.rng.Uint32(); x&3 < 2 {
			w.out = append(w.out, little[x>>8%uint32(len(little))]...)
		} else {
			n := uint32(len(wordList))
			w.out = append(w.out, wordList[min(x>>8%n, x>>14%n)]...)
		}
	}
}
