# SPDX-License-Identifier: Apache-2.0
"""The resources as typed data: models, conditions, reasons. No input or output happens here."""
