package graph

import "mayfly.dev/mayfly"

// index finds things in a graph. It believes nothing about the graph: edges
// may lead nowhere or in circles.
type index struct {
	g       *mayfly.Graph
	nodes   map[string]*mayfly.Node
	ofStep  map[int][]*mayfly.Node
	results map[string]*mayfly.Node // by action
	lanes   map[string][]*mayfly.AgentLane
	steps   map[string][]*mayfly.Step // by agent
	side    map[string][]*mayfly.Node // by agent
}

func indexOf(g *mayfly.Graph) *index {
	x := &index{
		g: g, nodes: map[string]*mayfly.Node{}, ofStep: map[int][]*mayfly.Node{}, results: map[string]*mayfly.Node{},
		lanes: map[string][]*mayfly.AgentLane{}, steps: map[string][]*mayfly.Step{}, side: map[string][]*mayfly.Node{},
	}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		x.nodes[n.ID] = n
		if n.Kind == mayfly.SideNode {
			x.side[n.Agent] = append(x.side[n.Agent], n)
			continue
		}
		x.ofStep[n.Step] = append(x.ofStep[n.Step], n)
	}
	for _, e := range g.Edges {
		if n := x.nodes[e.To]; e.Kind == "returns" && n != nil {
			x.results[e.From] = n
		}
	}
	for i := range g.Agents {
		a := &g.Agents[i]
		x.lanes[a.Parent] = append(x.lanes[a.Parent], a)
	}
	for i := range g.Steps {
		s := &g.Steps[i]
		x.steps[s.Agent] = append(x.steps[s.Agent], s)
	}
	return x
}

// of lists the nodes of a step that are of a kind.
func (x *index) of(step int, kind mayfly.NodeKind) []*mayfly.Node {
	var list []*mayfly.Node
	for _, n := range x.ofStep[step] {
		if n.Kind == kind {
			list = append(list, n)
		}
	}
	return list
}

// name is what to call an agent.
func name(a *mayfly.AgentLane) string {
	if a.Name != "" && a.ID != "" {
		return a.Name + " (" + a.ID + ")"
	}
	return a.ID + a.Name
}
