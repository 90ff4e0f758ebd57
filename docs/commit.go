//go:build ignore

// Program commit draws commit.svg, the picture of the README:
//
//	go run docs/commit.go > docs/commit.svg
package main

import (
	"fmt"
	"strings"
)

const (
	width, height = 680, 250
	left          = 24 // where the time lines begin
	boxHeight     = 40
)

// style lets the picture follow a dark page.
const style = `
text { font: 14px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.small { font-size: 12.5px; }
.box { fill: #eef2f6; stroke: #59636e; }
.commit { fill: #0969da; stroke: #0969da; }
.commit-text { fill: #ffffff; font-weight: 600; }
.crash { stroke: #cf222e; stroke-width: 2; }
.crash-text { fill: #cf222e; }
.one { fill: none; stroke: #0969da; stroke-width: 2; stroke-dasharray: 6 4; }
@media (prefers-color-scheme: dark) {
	text { fill: #f0f6fc; }
	.box { fill: #262c36; stroke: #9198a1; }
	.commit { fill: #1f6feb; stroke: #1f6feb; }
	.crash { stroke: #ff7b72; }
	.crash-text { fill: #ff7b72; }
	.one { stroke: #4493f8; }
}
`

type picture struct{ strings.Builder }

func (p *picture) addf(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *picture) text(x, y int, class, text string) {
	p.addf(`<text x="%d" y="%d" class="%s">%s</text>`, x, y, class, text)
}

// box draws one statement, or one COMMIT, and returns where the next may stand.
func (p *picture) box(x, y, boxWidth int, class, text string) int {
	textClass := "small"
	if class == "commit" {
		textClass = "small commit-text"
	}
	p.addf(`<rect x="%d" y="%d" width="%d" height="%d" rx="5" class="%s"/>`, x, y, boxWidth, boxHeight, class)
	p.addf(`<text x="%d" y="%d" text-anchor="middle" class="%s">%s</text>`, x+boxWidth/2, y+boxHeight/2+5, textClass, text)
	return x + boxWidth + 6
}

// crash draws a cross before x, and under it what a crash there leaves.
func (p *picture) crash(x, y int, leaves string) {
	p.addf(`<path d="M%d %d l12 12 m0 -12 l-12 12" class="crash"/>`, x, y+boxHeight/2-6)
	p.addf(`<text x="%d" y="%d" text-anchor="middle" class="small crash-text">%s</text>`, x+6, y+boxHeight+22, leaves)
}

func main() {
	var p picture
	p.addf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-labelledby="title">`, width, height)
	p.addf(`<title id="title">Kept apart, key, writes and answer are three commits, and a crash between two of them leaves a stuck key or work that is done twice. With samecommit they are one commit.</title>`)
	p.addf(`<style>%s</style>`, style)

	const gap = 36 // room for a crash
	y := 40
	p.text(left, y-16, "title", "Key, work and answer, each in its own commit")
	x := p.box(left, y, 104, "box", "claim the key")
	x = p.box(x, y, 76, "commit", "COMMIT")
	p.crash(x+(gap-18)/2, y, "crash: the key is stuck")
	x = p.box(x+gap-6, y, 104, "box", "your writes")
	x = p.box(x, y, 76, "commit", "COMMIT")
	p.crash(x+(gap-18)/2, y, "crash: the work is done twice")
	x = p.box(x+gap-6, y, 104, "box", "the answer")
	p.box(x, y, 76, "commit", "COMMIT")

	y = 166
	p.text(left, y-22, "title", "samecommit: one commit")
	x = p.box(left, y, 104, "box", "claim the key")
	x = p.box(x, y, 104, "box", "your writes")
	x = p.box(x, y, 104, "box", "the answer")
	end := p.box(x, y, 76, "commit", "COMMIT")
	p.addf(`<rect x="%d" y="%d" width="%d" height="%d" rx="9" class="one"/>`, left-9, y-9, end-6-left+18, boxHeight+18)
	p.text(left, y+boxHeight+34, "small", "A crash before the COMMIT leaves nothing, and the key is free. After it the answer is there.")
	p.addf(`</svg>`)
	fmt.Print(p.String())
}
