package api

import (
	"io"
	"net/http"

	"mayfly.dev/mayfly"
)

func (s *Server) getGraph(w http.ResponseWriter, r *http.Request) error {
	ctx, done := s.streaming(r)
	defer done()
	g, err := s.svc.Graph(ctx, r.PathValue("id"))
	return answer(w, http.StatusOK)(g, cause(ctx, err))
}

func (s *Server) listExchanges(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Exchanges(r.Context(), r.PathValue("id"))
	return answerList(w, list, err)
}

func (s *Server) getContent(w http.ResponseWriter, r *http.Request) error {
	body, err := s.svc.Content(r.Context(), r.PathValue("digest"))
	if err != nil {
		return err
	}
	defer body.Close()
	if err := startStream(w, "application/json"); err != nil {
		return nil // the client has left
	}
	_, err = io.Copy(flushWriter{w}, body)
	return err
}

func (s *Server) addModel(w http.ResponseWriter, r *http.Request) error {
	var q mayfly.AddModel
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	return answer(w, http.StatusCreated)(s.svc.AddModel(r.Context(), q))
}

func (s *Server) listModels(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Models(r.Context())
	return answerList(w, list, err)
}

func (s *Server) getModel(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusOK)(s.svc.Model(r.Context(), r.PathValue("model")))
}
