# SPDX-License-Identifier: Apache-2.0
"""The one room that talks to a kube-apiserver: plain JSON documents in and out, no meaning of its own."""
