# The image: one static binary on nothing. It builds with BuildKit and with
# the classic builder of Engine 20.10. Without a registry `make image` builds
# the stage "base" and puts a binary made by the host's Go on top.
ARG GO_IMAGE=golang:1.26

FROM scratch AS base
ARG VERSION=dev
LABEL org.opencontainers.image.title="backupd" \
      org.opencontainers.image.description="Backs up and restores the volumes of a Docker Compose stack" \
      org.opencontainers.image.source="https://github.com/disko/backupd" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
ENTRYPOINT ["/backupd"]

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /backupd ./cmd/backupd

FROM base
COPY --from=build /backupd /backupd
