# Our Bento distribution with its streams: gateway, worker, collector, dead letters. Built from the project's root:
#
#   docker build -f manifests/images/bento.Dockerfile -t penstock-bento .
#
# BASE is any image with Go 1.26 or later and certificates; nothing of it is in the result.
ARG BASE=golang:1.26-bookworm

FROM ${BASE} AS build
WORKDIR /build
COPY src/bento/go.mod src/bento/go.sum ./
RUN go mod download
COPY src/bento ./
RUN CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags='-s -w' -o /bento .

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /bento /bento
COPY config/bento /etc/penstock/bento
USER 65532:65532
ENTRYPOINT ["/bento", "-t", "/etc/penstock/bento/templates/*.yaml", "-r", "/etc/penstock/bento/resources/*.yaml", "-c"]
CMD ["/etc/penstock/bento/gateway.yaml"]
